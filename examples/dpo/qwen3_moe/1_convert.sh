#!/usr/bin/env bash
# Step 1: a Hugging Face folder -> one MindSpore checkpoint.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python tools/convert_weight.py --model qwen3_moe --input_path Qwen3-30B-A3B --dtype bf16 \
  --output_path qwen3_30b_a3b/qwen3_30b_a3b.safetensors
