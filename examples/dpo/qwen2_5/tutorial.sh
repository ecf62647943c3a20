#!/usr/bin/env bash
# All steps in order; --tiny [DIR] makes a small model and runs them here, on a CPU.
source "$(dirname "$0")/../tutorial.sh"

bring_tiny() {
  tiny_model qwen2_5/7b qwen2 Qwen2.5-7B-Instruct --family qwen2
  tiny_data data
}

tutorial "$@"
