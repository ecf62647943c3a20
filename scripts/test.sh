#!/usr/bin/env bash
# Makes a venv, installs the project with its development tools, checks and tests it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${VENV:-.venv-test}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".[dev]"
export PATH="$(cd "$venv" && pwd)/bin:$PATH"
make quality
make test
