# Needs only Python >= 3.11, make and git. Everything else is installed into .venv, from uv.lock.
#   make run     set up, then run the main job (same as `edge-fl run`); ARGS="key=value ..." is passed on
#   make test    set up, then run the tests;      ARGS="-n 0 tests/test_cli.py" runs some of them
#   make lint    ruff and pyright          make bench    benchmarks, JSON on stdout
#   make setup   only set up               make clean    remove .venv and caches
#   make test-edge     devices under systemd, in a container, on ARM, on a slow link; as root, on Debian
#   make test-wheel    the wheel alone in an empty environment, both systems; FLWR=1.42.0 takes that Flower
#   make docs          the documentation as a site, in site/
#   make soak HOURS=2  a deployment on this machine for hours: does anything grow? (ARGS="--out DIRECTORY")
#   make deploy-demo   a server and four devices on this machine, both systems, and a device that dies

UV_VERSION := 0.12.24
BENCHMARKS := distill_overhead consensus_overhead
PYTHON_CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11 python
BIN := .venv/bin
ARGS :=
HOURS := 2
# All that is installed names the place where it was. A clone that was copied or moved gets another
# environment, or it would run the code of the other clone.
PLACE := $(shell pwd -P | cksum | cut -d ' ' -f 1)
MADE := .venv/.made-$(PLACE)
READY := .venv/.ready-$(PLACE)

.DEFAULT_GOAL := help
.PHONY: help setup environment run test test-edge test-wheel lint bench docs soak deploy-demo clean

help:
	@sed -n '2,10s/^# //p' Makefile

setup: $(READY)
	@:

environment: $(MADE)
	@:

# The stamp makes every later call instant and free of network traffic. A change of pyproject.toml
# alone (say, of a default in it) is synchronised from uv's cache when there is no network.
# Compiled here once, or each of a run's ten processes would do it where nothing may be written.
$(READY): pyproject.toml uv.lock hatch_build.py flower_environment.pth | $(MADE)
	@export UV_PROJECT_ENVIRONMENT="$(CURDIR)/.venv" UV_PYTHON_DOWNLOADS=never UV_COMPILE_BYTECODE=1; \
	$(BIN)/uv sync --frozen || { echo "make: trying again from the cache alone" >&2; \
	$(BIN)/uv sync --frozen --offline; }
	@touch $@

# pip installs uv only: on some machines pip is set up to prefer a CPU build of torch, which does not
# fit the torchvision of the registry; uv takes both from the index that uv.lock names.
$(MADE):
	@case "$$(pwd -P)" in *[[:space:]\"\'\\\$$\&\;\|\<\>\(\)\`\*\?\[{]*) \
	  echo "make: Ray starts no Python in a path with spaces or the shell's signs: move the clone," \
	    "which is in $$(pwd -P)" >&2; exit 1;; \
	esac
	@set -e; python=; for candidate in $(PYTHON_CANDIDATES); do \
	  if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    python=$$candidate; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "make: no Python >= 3.11 found (tried: $(PYTHON_CANDIDATES))." >&2; \
	  echo "make: install one, or name yours: make setup PYTHON_CANDIDATES=/path/to/python" >&2; exit 1; \
	fi; \
	[ ! -e .venv ] || echo "make: .venv was not made here, or not to its end: it is made anew"; \
	echo "make: setting up .venv with $$($$python --version)"; \
	$$python -m venv --clear .venv || { rm -rf .venv; \
	  echo "make: 'python -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"
	@touch $@

run: setup
	@$(BIN)/edge-fl run $(ARGS)

test: setup
	@$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

# Each says what is missing if it cannot be tried here.
test-edge: setup
	@$(BIN)/python -m pytest -n 0 -m edge -s $(or $(ARGS),tests/edge)

test-wheel: setup
	@FLWR="$(FLWR)" .ci/wheel

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python

bench: setup
	@set -e; for name in $(BENCHMARKS); do $(BIN)/python -m experiments.benchmarks.$$name $(if $(OUT),--out $(OUT)/$$name.json) $(ARGS); done

docs: setup
	@$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs site

soak: setup
	@$(BIN)/python -m experiments.soak --hours $(HOURS) $(ARGS)

deploy-demo: setup
	@$(BIN)/edge-fl deploy demo

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis dist site
