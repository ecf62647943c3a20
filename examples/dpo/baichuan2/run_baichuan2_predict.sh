#!/usr/bin/env bash
# Asks a model: bash run_baichuan2_predict.sh single|parallel N YAML CHECKPOINT TOKENIZER QUESTION [QUESTION ...]
# Each of the N devices holds the whole model; rank 0 tells the answers.
set -euo pipefail
workers=1
[ "${1:-}" = parallel ] && workers=${2:-} && shift
if [[ $# -lt 5 || ! ${1} =~ ^(single|[0-9]+)$ ]]; then
  sed -n 's/^# Asks a model: /error: usage: /p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
words=(--config "$2" --run_mode predict --load_checkpoint "$3" --vocab_file "$4" --predict_data "${@:5}")
line=run_dpo.py
for word in "${words[@]}"; do
  line+=" '${word//\'/\'\\\'\'}'"
done
exec bash "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/msrun_launcher.sh" "$line" "$workers"
