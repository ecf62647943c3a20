#!/usr/bin/env bash
# Makes a venv, installs the project with its development tools, checks and tests it; last what needs torch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${VENV:-.venv-test}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".[dev]"
export PATH="$(cd "$venv" && pwd)/bin:$PATH"
make quality
make test

# Not every machine has a wheel of torch; anything else that stops the installation is a failure.
torch=$(grep -o 'torch==[0-9.]*' setup.py)
if make interop-venv; then
    make interop
elif "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --dry-run --no-deps "$torch"; then
    exit 1
else
    echo "make interop was left out: $torch cannot be installed here"
fi
