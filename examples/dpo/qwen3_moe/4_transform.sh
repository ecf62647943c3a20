#!/usr/bin/env bash
# Step 4: the checkpoints of all ranks become one.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python tools/transform_checkpoint.py --src_checkpoint=qwen3_moe_out/checkpoint_network \
  --src_strategy=qwen3_moe_out/strategy --dst_checkpoint=qwen3_moe_merged
