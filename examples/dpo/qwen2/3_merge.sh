#!/usr/bin/env bash
# Step 3: the parts become one file.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python tools/dpo_preprocess.py --merge True --src qwen2.parts/ --dst qwen2.mindrecord
