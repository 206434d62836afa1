# `make demo` and `make test` do everything on a fresh machine; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' lora_core/version.py)
# Named by the version, so that another version is installed again and `importlib.metadata` tells it.
STAMP := $(VENV)/.installed-$(VERSION)
SETUP_LOG := build/setup.log
DIST := dist
# Interpreters for `make test-packaging`, separated by spaces; none: that of $(VENV).
PYTHONS :=
DOCS_VENV := build/docs-venv
DOCS_STAMP := $(DOCS_VENV)/.installed
MODEL := build/models/SmolLM2-135M-Instruct
# conftest.py has the files in an order that ends at about one time for both.
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder
DISTRIBUTIONS := . plugins/xnnpack plugins/coreml plugins/qnn_sim plugins/onnx plugins/ray plugins/transformers

# $(call logged,COMMAND) sends what COMMAND says to the log; if it fails, its last lines without pip's warnings are shown.
logged = $(1) >>$(SETUP_LOG) 2>&1 || { grep -v '^WARNING' $(SETUP_LOG) | tail -n 20; echo "make setup failed; all of it is in $(SETUP_LOG)"; exit 1; }

.PHONY: audit endurance fuzz hashes hostile licences strikes help setup vendor model demo docs reference changelog lint types test test-fast test-deep test-processors test-packaging dist clean-demo clean native

help:
	@echo "make setup           install everything into $(VENV)"
	@echo "make vendor          Qualcomm's own libraries, under Qualcomm's licence, for the tests that ask them"
	@echo "make demo            export SmolLM2 with real adapters, run it, show what is shared"
	@echo "make test            lint, types and all tests but 'make test-packaging' and 'make test-deep'"
	@echo "make test-fast       of 'make test' what needs no full-size model"
	@echo "make test-deep       what takes long, and a shorter test of 'make test' holds the same of less"
	@echo "make lint types      the parts of 'make test' before the tests"
	@echo "make dist            build wheels and sdists of every distribution into $(DIST), and check them"
	@echo "make test-packaging  test what 'make dist' builds, used in new environments"
	@echo "make test-processors numbers and bytes as on other processors, and beside a busy machine"
	@echo "make fuzz            damage what readers read, 1,000,000 times over all (FUZZ=N: N times, MINUTES=N: no longer)"
	@echo "make endurance       10,000 changes of a bundle and 10,000 switches of a session"
	@echo "make strikes         signals at random instants, 100 of each kind for each command (STRIKES=N: N)"
	@echo "make native          build native/ by CMake into build/native-cmake"
	@echo "make audit           known weaknesses of what is installed"
	@echo "make licences        under which licences it is"
	@echo "make hashes          write requirements/hashes.txt for what is installed now"
	@echo "make hostile BUNDLE=DIR ADAPTER=DIR  change every field of a copy of a bundle; an adapter fits it"
	@echo "make docs            build the documentation into build/site; no torch needed"
	@echo "make reference       write the pages of docs/ that are made from the code"
	@echo "make changelog       move the fragments of changes/ into CHANGELOG.md"
	@echo "make clean-demo      forget the demo's bundle, so that it exports again"
	@echo "make clean           forget everything that was built (not $(VENV))"

setup: $(STAMP)

$(STAMP): requirements/hashes.txt requirements/dev.txt requirements/runtime.txt pyproject.toml $(wildcard plugins/*/pyproject.toml)
	@mkdir -p $(dir $(SETUP_LOG)) && : >$(SETUP_LOG)
	@echo "==> Making $(VENV) (torch, executorch, coremltools, transformers: about 3 minutes; log: $(SETUP_LOG))"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "The pinned dependencies have wheels for Python 3.11, 3.12 and 3.13; this is " + sys.version)'
	@$(call logged,$(PYTHON) -m venv $(VENV))
	@echo "==> Installing pinned dependencies"
	@$(call logged,$(BIN)/python -m pip install --disable-pip-version-check --no-deps --require-hashes --requirement requirements/hashes.txt)
	@$(call logged,$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements/dev.txt)
	@echo "==> Installing lora-core $(VERSION) and its plugins"
	@$(call logged,$(BIN)/python -m pip install --disable-pip-version-check $(addprefix --editable ,$(DISTRIBUTIONS)))
	@rm -f $(VENV)/.installed* && touch $@

vendor: $(STAMP)
	@$(call logged,$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements/vendor.txt)

model: $(MODEL)/config.json

$(MODEL)/config.json: | $(STAMP)
	@$(BIN)/python examples/prepare_smollm2.py $(MODEL)

demo: $(STAMP) $(MODEL)/config.json
	@$(BIN)/python examples/demo.py --model $(MODEL) --output build/demo

FUZZ := 1000000
MINUTES := inf

fuzz: $(STAMP)
	@$(BIN)/python -m tests.security.fuzz $(FUZZ) --minutes $(MINUTES)
	@FUZZ_EXAMPLES=100000 $(BIN)/python -m pytest -q plugins/xnnpack/tests/test_hostile_files.py \
	  plugins/coreml/tests/test_hostile_packages.py tests/intake/test_plain_json.py

native:
	cmake -S native -B build/native-cmake && cmake --build build/native-cmake

endurance: $(STAMP)
	@ENDURANCE=10000 $(BIN)/python -m pytest -q -s tests/endurance

STRIKES := 100

STRUCK := qnn_sim,xnnpack,xnnpack-multimethod,coreml,coreml-inputs,onnx

strikes: $(STAMP)
	@EVERY_LINE=1 $(BIN)/python -m pytest -q tests/bundle/test_interruptions.py
	@$(BIN)/python -m tests.endurance.strikes $(STRIKES)
	@$(BIN)/python -m tests.endurance.strikes $(STRIKES) --forked --backend plain,$(STRUCK)
	@$(BIN)/python -m tests.endurance.strikes $(STRIKES) --forked --backend xnnpack --commands bench
	@$(BIN)/python -m tests.endurance.readers $(STRIKES) --backend $(STRUCK)

licences: $(STAMP)
	@PYTHONPATH=tools $(BIN)/python -m licences

AUDIT_VENV := build/audit-venv

audit: $(STAMP)
	@$(PYTHON) -m venv $(AUDIT_VENV)
	@$(AUDIT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.9.0
	@$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' >build/installed.txt
	@$(AUDIT_VENV)/bin/pip-audit --strict --requirement build/installed.txt --no-deps --disable-pip

HASH_VENV := build/hash-venv

# What is installed, without torch, in the versions of today; comments at the file's head stay.
hashes: $(STAMP)
	@$(PYTHON) -m venv $(HASH_VENV)
	@$(HASH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	@$(BIN)/python -m pip freeze --exclude-editable | grep -v '^torch==' >build/versions.txt
	@$(HASH_VENV)/bin/uv pip compile build/versions.txt --quiet --no-deps --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-annotate --no-header --output-file build/hashes.txt
	@{ grep '^#' requirements/hashes.txt; cat build/hashes.txt; } >build/with-comments.txt
	@mv build/with-comments.txt requirements/hashes.txt

hostile: $(STAMP)
	@$(BIN)/python -m tests.security.hostile_bundles $(BUNDLE) $(ADAPTER)

reference: $(STAMP)
	@PYTHONPATH=tools $(BIN)/python -m refdocs
	@$(BIN)/python -m tests.testing.conformance_page

changelog: $(STAMP)
	@$(BIN)/python tools/changelog.py

$(DOCS_STAMP): requirements/docs.txt
	@echo "==> Making $(DOCS_VENV)"
	@$(PYTHON) -m venv $(DOCS_VENV)
	@$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements/docs.txt
	@touch $@

docs: $(DOCS_STAMP)
	@echo "==> Sphinx (warnings are errors)"
	@PYTHONPATH=tools $(DOCS_VENV)/bin/python -m docsite
	@echo "Open build/site/index.html"

lint: $(STAMP)
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)
	@echo "==> mypy (strict)"
	@$(BIN)/mypy lora_core tools/refdocs tools/docsite $(wildcard plugins/*/lora_core_*)

# Hundreds of tests start processes of their own; where PYTHONDONTWRITEBYTECODE is set, each would compile all it imports.
COMPILE = $(BIN)/python -m compileall -q lora_core tests $(wildcard plugins/*/lora_core_*)

test: lint types $(MODEL)/config.json
	@$(COMPILE)
	@echo "==> pytest (about 12 minutes on two cores; the slowest tests are shown at the end)"
	@$(BIN)/python -m pytest $(WORKERS) --durations=15 -m "not packaging and not deep"

test-fast: lint types
	@$(COMPILE)
	@echo "==> pytest without full-size models"
	@$(BIN)/python -m pytest $(WORKERS) -m "not full and not packaging and not deep"

dist: $(STAMP)
	@rm -rf $(DIST)
	@for project in $(DISTRIBUTIONS) examples/plugin; do \
		$(BIN)/python -m build --no-isolation --outdir $(DIST) $$project || exit 1; \
	done
	@$(BIN)/python -m twine check --strict $(DIST)/*

test-packaging: $(STAMP)
	@echo "==> pytest of wheels and sdists, each in a new environment"
	@PACKAGING_PYTHONS="$(PYTHONS)" $(BIN)/python -m pytest -m packaging tests/packaging

test-deep: $(STAMP)
	@echo "==> pytest of what takes long (more than half an hour)"
	@$(BIN)/python -m pytest -n 2 -m deep

test-processors: $(STAMP)
	@echo "==> pytest under settings that imitate other processors (about 3 minutes)"
	@$(BIN)/python tests/other_processors.py

clean-demo:
	rm -rf build/demo

clean:
	rm -rf build $(DIST)
