#!/usr/bin/env bash
# Runs a command on several workers: bash scripts/msrun_launcher.sh "SCRIPT ARGS" [WORKERS]     (8 workers unless told)
# The forms of 6 and of 9 words, for several machines too: bash scripts/msrun_launcher.sh --help
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec python "$root/mindrlhf/parallel/launch.py" "$@"
