#!/usr/bin/env bash
# Step 2: the data set of the yaml -> pairs. The reference is scored during training, so this needs no device.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python tools/dpo_preprocess.py --config model_configs/qwen3_moe/30b_a3b.yaml \
  --data_config examples/dpo/qwen3_moe/orca_dpo_pairs.yaml ${SEQ_LEN:+--seq_len "$SEQ_LEN"}
