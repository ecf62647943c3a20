#!/usr/bin/env bash
# Step 3: DPO on all workers; output.mindrecord not being there, output.parts is read.
set -euo pipefail
cd "$(dirname "$0")"
bash ../../../scripts/msrun_launcher.sh "run_dpo.py --config finetune_glm4_9b.yaml --train_dataset output.mindrecord \
  --vocab_file tokenizer.model --load_checkpoint glm4_9b.ckpt --auto_trans_ckpt True" "${WORKERS:-8}"
