SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help install serve test test-next contract lint dist lock clean

PYTHON ?= python3
MODEL ?= models/tiny-llada2
PORT ?= 8000
ARGS ?=
WORKERS ?= 2
BIN := .venv/bin
NEXT := .venv-next/bin

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18
	@echo 'Variables: PYTHON=$(PYTHON) MODEL=$(MODEL) PORT=$(PORT) WORKERS=$(WORKERS) ARGS="extra arguments"'

install: ## make .venv: vLLM for CPU, this project (editable), development tools
	@PYTHON='$(PYTHON)' tools/install.sh

serve: install ## serve MODEL on PORT; ARGS go to `vllm serve`
	@source tools/cpu_env.sh; set -x; \
	VLLM_PLUGINS=dllm exec $(BIN)/vllm serve $(MODEL) --port $(PORT) \
	--served-model-name $(notdir $(patsubst %/,%,$(MODEL))) $(MODEL) $(ARGS)

test: install ## run the tests in WORKERS processes; ARGS go to pytest
	@source tools/cpu_env.sh; set -x; \
	exec $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

test-next: install ## the same on the next vLLM (.venv-next); ARGS go to pytest
	@tools/install_next.sh && source tools/cpu_env.sh; set -x; \
	exec $(NEXT)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

lint: install ## ruff, ruff format, mypy and import-linter, all read-only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

contract: install ## note down the parts of both versions of vLLM that we rely on
	@tools/install_next.sh
	for bin in $(BIN) $(NEXT); do $$bin/python -m tests.contract; done

dist: install ## make dist/: sdist and wheel, checked, and the wheel tried
	@tools/dist.sh
	@source tools/cpu_env.sh; tools/try_wheel.sh

lock: install ## pin vLLM's CPU requirements afresh in requirements/cpu.txt
	$(BIN)/python tools/lock_cpu.py

clean: ## remove what builds and caches left; .venv stays
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .venv/.done-project
	rm -rf *.egg-info packaging/vllm-metadata/{build,*.egg-info}
	find vllm_dllm -name '*.so' -delete
	find vllm_dllm tests tools -name __pycache__ -prune -exec rm -r {} +
