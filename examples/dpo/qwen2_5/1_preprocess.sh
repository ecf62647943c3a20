#!/usr/bin/env bash
# Step 1: data/train.jsonl and data/held_out.jsonl -> pairs with reference log-probs, in parts, on all workers.
set -euo pipefail
cd "$(dirname "$0")/../../.."
bash scripts/msrun_launcher.sh "tools/dpo_preprocess.py --config model_configs/qwen2_5/7b.yaml \
  --src data/train.jsonl --dst qwen2_5_train.mindrecord --dataset_type cvalues --tokenizer Qwen2.5-7B-Instruct \
  --load_checkpoint Qwen2.5-7B-Instruct --seq_len ${SEQ_LEN:-4097}" "${WORKERS:-8}"
bash scripts/msrun_launcher.sh "tools/dpo_preprocess.py --config model_configs/qwen2_5/7b.yaml \
  --src data/held_out.jsonl --dst qwen2_5_held_out.mindrecord --dataset_type cvalues --tokenizer Qwen2.5-7B-Instruct \
  --load_checkpoint Qwen2.5-7B-Instruct --seq_len ${SEQ_LEN:-4097}" "${WORKERS:-8}"
