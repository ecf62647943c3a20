#!/usr/bin/env bash
# Step 7: the aligned model as a Hugging Face folder.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python tools/convert_weight.py --model qwen2 --input_path qwen2_merged --output_path Qwen2-7B-DPO --reversed True
