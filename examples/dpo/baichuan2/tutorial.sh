#!/usr/bin/env bash
# All steps in order; --tiny [DIR] makes a small model and runs them here, on a CPU.
source "$(dirname "$0")/../tutorial.sh"

bring_tiny() {
  tiny_model baichuan2/13b baichuan2_13b Baichuan2-13B-Chat --family baichuan2 --variant 13b
  tiny_data data
  mv data/train.jsonl input.jsonl
  cp Baichuan2-13B-Chat/tokenizer.model .
  cp Baichuan2-13B-Chat/tokenizer.model examples/dpo/baichuan2
}

tutorial "$@"
