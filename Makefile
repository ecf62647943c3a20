PYTHON ?= python

.PHONY: quality test tutorials unit

quality:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

unit:
	$(PYTHON) -m pytest -m "not slow"

test: unit
	$(PYTHON) -m pytest -m slow

# Every tutorial on the small model that it makes itself, in ./tutorial_output; about 2 minutes each on 2 cores.
tutorials:
	for tutorial in examples/dpo/*/tutorial.sh; do bash $$tutorial --tiny || exit; done
