#!/usr/bin/env bash
# All steps in order; --tiny [DIR] makes a small model and runs them here, on a CPU.
source "$(dirname "$0")/../tutorial.sh"

bring_tiny() {
  tiny_model qwen3_moe/30b_a3b qwen3_moe Qwen3-30B-A3B --family qwen3_moe
  echo "rlhf: {reference: online}" >>model_configs/qwen3_moe/30b_a3b.yaml
  tiny_data data
  sed 's/"prompt": /"system": "", "question": /; s/"pos_resp": /"chosen": /; s/"neg_resp": /"rejected": /' \
    data/train.jsonl >orca_rlhf.jsonl
}

tutorial "$@"
