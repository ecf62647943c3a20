#!/usr/bin/env bash
# Step 2: the parts become one file.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python tools/dpo_preprocess.py --merge True --src cvalues_one_4096.parts/ --dst cvalues_one_4096.mindrecord
