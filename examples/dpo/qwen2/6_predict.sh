#!/usr/bin/env bash
# Step 6: a question, on one device.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python run_dpo.py --config model_configs/qwen2/7b.yaml --run_mode predict --load_checkpoint qwen2_merged \
  --predict_data "How do I learn a new language?" --predict_output qwen2_answers.jsonl
