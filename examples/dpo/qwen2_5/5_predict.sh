#!/usr/bin/env bash
# Step 5: questions, on one device.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python run_dpo.py --config model_configs/qwen2_5/7b.yaml --run_mode predict --load_checkpoint qwen2_5_merged \
  --predict_data "How do I learn a new language?" "如何学习一门新的语言？" --predict_output qwen2_5_answers.jsonl
