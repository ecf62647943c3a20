#!/usr/bin/env bash
# Step 5: a question, on one device.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python run_dpo.py --config model_configs/qwen3_moe/30b_a3b.yaml --run_mode predict --load_checkpoint qwen3_moe_merged \
  --predict_data "How do I learn a new language?" --predict_output qwen3_moe_answers.jsonl
