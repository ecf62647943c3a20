#!/usr/bin/env bash
# Step 1: a Hugging Face folder -> one MindSpore checkpoint.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python tools/convert_weight.py --model qwen2 --input_path Qwen2-7B-Instruct --output_path qwen2_7b/qwen2_7b.safetensors \
  --dtype bf16
