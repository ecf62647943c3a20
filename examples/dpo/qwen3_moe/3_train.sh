#!/usr/bin/env bash
# Step 3: DPO on 16 devices; on two nodes type it on each, with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT set.
set -euo pipefail
cd "$(dirname "$0")/../../.."
bash scripts/msrun_launcher.sh "run_dpo.py --config model_configs/qwen3_moe/30b_a3b.yaml \
  --train_dataset orca.mindrecord --load_checkpoint qwen3_30b_a3b/qwen3_30b_a3b.safetensors \
  output_dir=qwen3_moe_out train.save_steps=100" "${WORKERS:-16}"
