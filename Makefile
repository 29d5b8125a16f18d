# Everything a clone needs is one of these. They install what is missing, and nothing else (.ci/setup).

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.NOTPARALLEL:

# One target directory for the Mix compiler, clippy and the Rust tests.
export CARGO_TARGET_DIR ?= $(CURDIR)/_build/native
export SNAKEPIT_VENV ?= $(CURDIR)/_build/venv
export SNAKEPIT_PYTHON := $(SNAKEPIT_VENV)/bin/python
# The Python client is used from where it lies.
export PYTHONPATH := $(CURDIR)/priv/python$(if $(PYTHONPATH),:$(PYTHONPATH))
export PYTHONDONTWRITEBYTECODE := 1
export PYTHONUTF8 := 1
# Names and output are UTF-8, whatever the machine's locale says.
export ELIXIR_ERL_OPTIONS ?= +fnu
ifeq (,$(filter %UTF-8 %utf8 %utf-8 %UTF8,$(or $(LC_ALL),$(LC_CTYPE),$(LANG))))
export LC_ALL := C.UTF-8
endif

.PHONY: help setup demo test conformance bench sanitize dist clean

help: ## This list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

setup: ## Install whatever demo, test and bench need and this machine does not have
	@.ci/setup all

demo: ## See what it does
	@.ci/setup demo
	MIX_ENV=prod mix run bench/demo.exs

test: export MIX_ENV := test
test: ## Format, lint and test Elixir, Rust and Python
	@.ci/setup test
	mix format --check-formatted
	cd native && cargo fmt --all --check
	mix compile --warnings-as-errors
	cd native && cargo clippy --workspace --all-targets --locked -- -D warnings
	cd native && cargo test --workspace --locked
	mix test
	$(SNAKEPIT_PYTHON) -m pytest -q test/python

conformance: export MIX_ENV := test
conformance: ## Run OTP's own NIF test suite isolated, with the VM as the reference (ARGS: test/conformance/README.md)
	@.ci/setup conformance
	mix compile
	mix run --no-compile --no-start test/conformance/run.exs $(ARGS)

bench: ## Measure; figures go to bench/results (ARGS: bench/README.md)
	@.ci/setup bench
	MIX_ENV=prod mix run bench/run.exs $(ARGS)

sanitize: ## Run the tests of the worker's host under AddressSanitizer and valgrind; minutes
	@.ci/setup sanitize
	native/sanitize

dist: export MIX_ENV := prod
dist: ## Pack the native library for machines without Rust (SNAKEPIT_SHM_NATIVE)
	@.ci/setup dist
	mix compile
	mix run --no-compile --no-start -e 'IO.puts(Mix.Tasks.Compile.SnakepitNative.dist("_build/dist"))'

clean: ## Remove all that was built, the virtual environment too
	rm -rf _build deps priv/native
