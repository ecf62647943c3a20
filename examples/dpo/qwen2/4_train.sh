#!/usr/bin/env bash
# Step 4: DPO on all workers.
set -euo pipefail
cd "$(dirname "$0")/../../.."
bash scripts/msrun_launcher.sh "run_dpo.py --config model_configs/qwen2/7b.yaml --train_dataset qwen2.mindrecord \
  --load_checkpoint qwen2_7b/qwen2_7b.safetensors output_dir=qwen2_out" "${WORKERS:-8}"
