#!/usr/bin/env bash
# Step 1: input.jsonl -> pairs with reference log-probs, in parts, on all workers.
set -euo pipefail
cd "$(dirname "$0")/../../.."
bash scripts/msrun_launcher.sh "tools/dpo_preprocess.py --src input.jsonl --dst cvalues_one_4096.mindrecord \
  --config model_configs/baichuan_config/process_baichuan2_13b.yaml --tokenizer tokenizer.model \
  --seq_len ${SEQ_LEN:-4097} --dataset_type cvalues --save_interval 2" "${WORKERS:-8}"
