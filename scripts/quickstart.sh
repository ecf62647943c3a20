#!/usr/bin/env bash
# Makes a venv, installs the project, and runs the whole pipeline on a small model: see tools/quickstart.py --help.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$root/.venv}
if [ ! -x "$venv/bin/python" ]; then
  echo "making a virtual environment in $venv (about 3.4 GB)"
  "${PYTHON:-python3}" -m venv "$venv"
fi
echo "installing MindSpore, MindFormers and this project (a minute or more the first time)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$root"
PATH="$venv/bin:$PATH" exec python "$root/tools/quickstart.py" "$@"
