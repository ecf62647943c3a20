#!/usr/bin/env bash
# Step 1: weights of Hugging Face or ModelScope -> one MindSpore checkpoint.
set -euo pipefail
cd "$(dirname "$0")"
python convert_weight.py --model glm-n --input_path glm-4-9b-chat/ --output_path glm4_9b.ckpt --dtype bf16
