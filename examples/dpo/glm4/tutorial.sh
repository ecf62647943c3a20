#!/usr/bin/env bash
# All steps in order; --tiny [DIR] makes a small model and runs them here, on a CPU.
source "$(dirname "$0")/../tutorial.sh"

bring_tiny() {
  tiny_model glm4/9b glm4 examples/dpo/glm4/glm-4-9b-chat --family glm4 --variant ChatGLMModel
  tiny_data data
  mv data/train.jsonl examples/dpo/glm4/input.jsonl
  cp examples/dpo/glm4/glm-4-9b-chat/tokenizer.model examples/dpo/glm4
}

tutorial "$@"
