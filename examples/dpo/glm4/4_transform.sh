#!/usr/bin/env bash
# Step 4: the checkpoints of all ranks become one.
set -euo pipefail
cd "$(dirname "$0")"
python transform_checkpoint.py --src_checkpoint=output/checkpoint_network --src_strategy=output/strategy \
  --dst_checkpoint=merged_dir
