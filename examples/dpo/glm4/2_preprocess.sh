#!/usr/bin/env bash
# Step 2: input.jsonl -> pairs with reference log-probs, in parts, on all workers.
set -euo pipefail
cd "$(dirname "$0")"
bash ../../../scripts/msrun_launcher.sh "dpo_preprocess_glm4_parallel.py --src input.jsonl --dst output.mindrecord \
  --config process_glm4_9b.yaml --tokenizer tokenizer.model --load_checkpoint glm4_9b.ckpt --auto_trans_ckpt True \
  --seq_len ${SEQ_LEN:-8192} --dataset_type cvalues" "${WORKERS:-8}"
