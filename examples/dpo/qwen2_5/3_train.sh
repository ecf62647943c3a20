#!/usr/bin/env bash
# Step 3: DPO on all workers, from the Hugging Face folder, evaluated before and after on the held-out pairs.
set -euo pipefail
cd "$(dirname "$0")/../../.."
bash scripts/msrun_launcher.sh "run_dpo.py --config model_configs/qwen2_5/7b.yaml \
  --train_dataset qwen2_5_train.mindrecord --eval_dataset qwen2_5_held_out.mindrecord \
  --load_checkpoint Qwen2.5-7B-Instruct output_dir=qwen2_5_out" "${WORKERS:-8}"
