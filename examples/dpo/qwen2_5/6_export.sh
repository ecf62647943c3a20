#!/usr/bin/env bash
# Step 6: the aligned model as a Hugging Face folder.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python tools/convert_weight.py --model qwen2 --input_path qwen2_5_merged --output_path Qwen2.5-7B-DPO --reversed True
