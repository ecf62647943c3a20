#!/usr/bin/env bash
# Step 6: the aligned model as a Hugging Face folder.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python tools/convert_weight.py --model qwen3_moe --input_path qwen3_moe_merged --output_path Qwen3-30B-A3B-DPO \
  --reversed True
