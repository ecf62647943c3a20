PYTHON ?= python

.PHONY: quality test unit

quality:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

unit:
	$(PYTHON) -m pytest -m "not slow"

test: unit
	$(PYTHON) -m pytest -m slow
