PYTHON ?= python
INTEROP ?= .venv-interop

.PHONY: interop interop-venv quality test tutorials unit

quality:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

unit:
	$(PYTHON) -m pytest -m "not slow" -n auto --maxprocesses 4

# What starts workers, or compiles two at a time, has the cores to itself.
ALONE = tests/e2e tests/fault tests/interop tests/invariant tests/layouts tests/multiproc

test: unit
	$(PYTHON) -m pytest -m slow -n 2 --dist worksteal $(ALONE:%=--ignore=%)
	$(PYTHON) -m pytest -m slow $(ALONE)

# Every tutorial on the small model that it makes itself, in ./tutorial_output; about 2 minutes each on 2 cores.
tutorials:
	for tutorial in examples/dpo/*/tutorial.sh; do bash $$tutorial --tiny || exit; done

# What needs torch: our checkpoints in transformers, PyTorch's files in our commands. In a venv of its own, .venv-interop.
interop: interop-venv
	$(INTEROP)/bin/python -m pytest tests/interop

interop-venv:
	[ -x $(INTEROP)/bin/python ] || $(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[dev,interop]"
