#!/usr/bin/env bash
# Step 2: input.jsonl -> pairs with reference log-probs, in parts, on all workers.
set -euo pipefail
cd "$(dirname "$0")/../../.."
bash scripts/msrun_launcher.sh "tools/dpo_preprocess.py --config model_configs/qwen2/7b.yaml --src input.jsonl \
  --dst qwen2.mindrecord --dataset_type cvalues --tokenizer Qwen2-7B-Instruct --seq_len ${SEQ_LEN:-4097} \
  --load_checkpoint qwen2_7b/qwen2_7b.safetensors --save_interval 2" "${WORKERS:-8}"
