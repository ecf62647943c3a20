#!/usr/bin/env bash
# Step 2: the parts become one file each.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python tools/dpo_preprocess.py --merge True --src qwen2_5_train.parts/ --dst qwen2_5_train.mindrecord
python tools/dpo_preprocess.py --merge True --src qwen2_5_held_out.parts/ --dst qwen2_5_held_out.mindrecord
