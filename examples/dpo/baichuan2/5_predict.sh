#!/usr/bin/env bash
# Step 5: a question, on one device.
set -euo pipefail
cd "$(dirname "$0")"
bash ./run_baichuan2_predict.sh single predict_baichuan2_13b.yaml checkpoint_network/rank_0/checkpoint_0.ckpt \
  tokenizer.model "如何学习一门新的语言？"
