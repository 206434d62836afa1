# `make demo` and `make test` do everything on a fresh machine; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_VENV := build/docs-venv
DOCS_STAMP := $(DOCS_VENV)/.installed
MODEL := build/models/SmolLM2-135M-Instruct
DISTRIBUTIONS := . plugins/xnnpack plugins/coreml plugins/qnn_sim

.PHONY: help setup model demo docs reference lint types test test-fast test-processors clean-demo clean

help:
	@echo "make setup       install everything into $(VENV)"
	@echo "make demo        export SmolLM2 with real adapters, run it, show what is shared"
	@echo "make test        lint, types and all tests"
	@echo "make test-fast   the tests that need no full-size model"
	@echo "make test-processors  numbers and bytes as on other processors, and beside a busy machine"
	@echo "make docs        build the documentation into build/site; no torch needed"
	@echo "make reference   write the pages of docs/ that are made from the code"
	@echo "make lint types  the parts of 'make test' before the tests"
	@echo "make clean-demo  forget the demo's bundle, so that it exports again"
	@echo "make clean       forget everything that was built (not $(VENV))"

setup: $(STAMP)

$(STAMP): requirements/dev.txt requirements/runtime.txt pyproject.toml $(wildcard plugins/*/pyproject.toml)
	@echo "==> Making $(VENV) (torch, executorch, coremltools, transformers: about 3 minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "lora-core is proven on Python 3.11; this is " + sys.version)'
	@$(PYTHON) -m venv $(VENV)
	@echo "==> Installing pinned dependencies"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements/dev.txt
	@echo "==> Installing lora-core and its plugins"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(addprefix --editable ,$(DISTRIBUTIONS))
	@touch $@

model: $(MODEL)/config.json

$(MODEL)/config.json: | $(STAMP)
	@$(BIN)/python examples/prepare_smollm2.py $(MODEL)

demo: $(STAMP) $(MODEL)/config.json
	@$(BIN)/python examples/demo.py --model $(MODEL) --output build/demo

reference: $(STAMP)
	@PYTHONPATH=tools $(BIN)/python -m refdocs

$(DOCS_STAMP): requirements/docs.txt
	@echo "==> Making $(DOCS_VENV)"
	@$(PYTHON) -m venv $(DOCS_VENV)
	@$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements/docs.txt
	@touch $@

docs: $(DOCS_STAMP)
	@echo "==> mkdocs"
	@$(DOCS_VENV)/bin/mkdocs build --strict --quiet
	@echo "Open build/site/index.html"

lint: $(STAMP)
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)
	@echo "==> mypy (strict)"
	@$(BIN)/mypy lora_core $(wildcard plugins/*/lora_core_*)

test: lint types $(MODEL)/config.json
	@echo "==> pytest (about 20 minutes on two cores)"
	@$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: lint types
	@echo "==> pytest without full-size models"
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not full"

test-processors: $(STAMP)
	@echo "==> pytest under settings that imitate other processors (about 3 minutes)"
	@$(BIN)/python tests/other_processors.py

clean-demo:
	rm -rf build/demo

clean:
	rm -rf build
