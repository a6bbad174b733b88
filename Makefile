# `make demo` and `make test` do all their own set-up, once, in .venv.
# They need Python 3.11 to 3.13, make and a C compiler.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
WORKERS ?= 2

BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Errors are printed, progress and warnings are not.
# --no-warn-conflicts: learn2learn asks for qpth and gsutil, and runs without them (see below)
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check install --no-warn-conflicts

.DEFAULT_GOAL := help
.PHONY: help setup demo test coverage lint docs playground playground-serve format

help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile
	@echo '  With ARGS="..." for the command, PYTHON=python3.12 for another interpreter, VENV=dir for another place.'

demo: $(VENV)/.ready ## meta-train the sinusoid for about a minute, then test on held-out tasks
	@$(BIN)/lightning-maml demo $(ARGS)

test: $(VENV)/.ready ## run the tests and the docstrings' examples, in two processes (WORKERS=8), without those marked slow (ARGS="-m slow" for these)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

coverage: $(VENV)/.ready ## the same, and which lines they run
	@$(BIN)/python -m pytest --cov=lightning_maml --cov=kernels --cov-report=term $(ARGS)

lint: $(VENV)/.ready ## check format, lint and types
	@echo 'lint: ruff format, ruff check, mypy'
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy

docs: $(VENV)/.ready ## build the site into site/; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

playground: $(READY) playground/node_modules/.package-lock.json ## build the playground into playground/dist/ (needs npm, clang 19 and wasi-libc)
	@$(BIN)/python playground/kernel.py
	@$(BIN)/python playground/weights.py
	@cd playground && npm run build --silent

playground-serve: playground ## build the playground and serve it on this machine
	@cd playground && npm run serve --silent

playground/node_modules/.package-lock.json: playground/package-lock.json
	@command -v npm >/dev/null || { echo "playground: found no npm (Debian: apt-get install nodejs npm)" >&2; exit 1; }
	@cd playground && npm ci --silent && touch node_modules/.package-lock.json

format: $(VENV)/.ready ## rewrite the files to the project's format, and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

setup: $(VENV)/.ready ## only the set-up

# Repeated where pyproject.toml changed. learn2learn 0.2.0 ships C files that do not compile on Python 3.11 or later;
# with Cython at hand and `build_ext` among its arguments its setup.py makes them afresh (learn2learn#413); older pips
# would run setup.py themselves, without that argument, but for --use-pep517. Its list of dependencies is left out
# (--no-deps): it would bring qpth, which pins numpy below 2. What it needs in order to run is the extra `l2l-runtime`
# of pyproject.toml.
$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || { \
	  echo "setup: needs Python 3.11, 3.12 or 3.13, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 | tail -n 1)" >&2; \
	  echo "setup: name another interpreter, as in: make $(firstword $(MAKECMDGOALS) demo) PYTHON=python3.12" >&2; exit 1; }
	@cc=$$($(PYTHON) -c 'import os, shlex, sysconfig; \
	print(shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0])'); \
	command -v "$$cc" >/dev/null || { \
	  echo "setup: found no C compiler ('$$cc'), which learn2learn's extension is built with." >&2; \
	  echo "setup: install one (Debian, Ubuntu: apt install build-essential; macOS: xcode-select --install)," >&2; \
	  echo "setup: or name one in the variable CC." >&2; exit 1; }
	@headers=$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
	test -f "$$headers/Python.h" || { \
	  echo "setup: found no Python.h in $$headers, which learn2learn's extension is built with." >&2; \
	  echo "setup: install Python's headers (Debian, Ubuntu: apt install python3-dev)." >&2; exit 1; }
	@echo "setup: a virtual environment in $(VENV), with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "setup: '$(PYTHON) -m venv $(VENV)' failed (Debian, Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@echo 'setup: lightning-maml, torch and the tools (a large download the first time: some minutes)'
	@$(PIP) 'setuptools>=77,<81' wheel cython numpy
	@$(PIP) --editable '.[dev]'
	@echo 'setup: learn2learn, built from its source'
	@$(PIP) --use-pep517 --no-build-isolation --no-deps --config-settings=--global-option=build_ext learn2learn==0.2.0
	@touch $@
	@echo 'setup: done'
