#!/usr/bin/env bash
# Step 3: DPO on all workers.
set -euo pipefail
cd "$(dirname "$0")/../../.."
bash ./scripts/msrun_launcher.sh "run_dpo.py --config model_configs/baichuan_config/run_baichuan2_13b_dpo.yaml \
  --train_dataset cvalues_one_4096.mindrecord" "${WORKERS:-8}"
