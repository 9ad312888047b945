# `make demo` and `make test` do everything on a fresh machine (Python 3.11 or 3.12, pip, make, git).
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test check clean

demo: $(VENV)/.ready
	$(RUN) -m portability.run +sweep=demo
	$(RUN) -m portability.analyze results/demo

test: $(VENV)/.ready
	$(RUN) -m ruff check portability analysis tests
	$(VENV)/bin/lint-imports
	HF_HUB_OFFLINE=1 $(RUN) -m pytest

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
