#!/usr/bin/env bash
# Step 5: a question, on one device.
set -euo pipefail
cd "$(dirname "$0")"
python run_dpo.py --config predict_glm4_9b.yaml --load_checkpoint merged_dir/checkpoint_network/rank_0/checkpoint_0.ckpt \
  --auto_trans_ckpt False --vocab_file tokenizer.model --predict_data "如何学习一门新的语言？"
