# Everything runs from a fresh clone: each target installs into .venv first when pyproject.toml has changed.
#
#   make install   the package and its development tools, into .venv (Python 3.11 or newer)
#   make demo      train the three arms on the embedded base and compare them
#   make test      every check, and the tests but for those marked gpu or exhaustive
#   make check     formatting, lint, types, import layers
#   make bench     training speed and memory, printed
#   make soak      long tests of the endpoint: overload, faults, memory, fuzzing
#   make chaos     long tests of training: seeded schedules of kills
#   make interop   our files under older diffusers, PEFT and transformers, which it installs into build/interop
#
# Another interpreter: make install PYTHON=/path/to/python3.12

PYTHON ?= $(shell for candidate in python3 python3.13 python3.12 python3.11; do \
	$$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$candidate; break; }; done)
BIN := .venv/bin
STAMP := .venv/installed

# deepspeed's setup.py imports torch when it can and would otherwise guess; the same range as in pyproject.toml.
TORCH = $(BIN)/python -c 'import tomllib; print(next(d for d in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"] if d.startswith("torch>")))'

.DEFAULT_GOAL := help
.PHONY: help install demo test check bench soak chaos interop
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

install: $(STAMP)

# Modules are compiled when they are first imported: most of 26,000 never are, and pip takes over a minute for them.
# So what was compiled must be kept, also where the environment says otherwise: each worker would compile all of it again.
unexport PYTHONDONTWRITEBYTECODE
PIP = $(BIN)/pip install --no-compile

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found: install one, or give PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .venv || { echo "make: no venv; on Debian: apt-get install python3-venv"; exit 1; }
	$(PIP) --quiet --upgrade pip setuptools wheel
	$(PIP) "$$($(TORCH))"
	$(PIP) --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/sdxl-ray compare demo

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two processes: each takes a file, or the files that share a fixture (tests/conftest.py), in turn. While one waits for Ray to start, the other
# computes. The summary of pytest is the last thing printed.
test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: $(STAMP)
	$(BIN)/python tests/bench/train.py

soak: $(STAMP)
	$(BIN)/python tests/soak/run.py

chaos: $(STAMP)
	$(BIN)/python tests/chaos/kills.py --seed 1 --kills 5
	SDXL_RAY_CASES=2000 SDXL_RAY_KILLED_SAVES=20 $(BIN)/python -m pytest -m 'chaos and not gpu'

# Without dependencies: torch, safetensors and accelerate are those of .venv.
OLD = diffusers==0.35.2 transformers==4.57.1 peft==0.17.1 tokenizers==0.22.1 huggingface_hub==0.36.0
interop: $(STAMP)
	test -d build/interop || $(PIP) --target build/interop --no-deps $(OLD)
	INTEROP_LIBRARIES=$(CURDIR)/build/interop $(BIN)/python -m pytest -m interop tests/interop
