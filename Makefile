# `make` lists the targets. Everything is installed into .venv and built under build/, both inside this folder.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
NATIVE := build/native
ENV_READY := $(VENV)/.ready
INSTALLED := $(VENV)/.installed
CXX_FILES = $(shell find csrc bench tests/native -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml
PYTEST_ARGS ?=
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help env build demo test test-native test-arm test-python sanitize lint format bench profile clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 14

env: $(ENV_READY)  ## make .venv with the pinned packages (a second run is quick)

build: $(INSTALLED)  ## compile the extension and install it, editable, into .venv

demo: build  ## train three posteriors on bundled images, print a table, then a small benchmark
	$(PY) -m rhovae demo
	$(PY) -m bench --quick

test: build test-native test-python  ## every test: C++ and Python

test-native: env  ## the C++ tests alone, without torch
	@cmake -S . -B $(NATIVE) -G Ninja -DPython_EXECUTABLE=$(CURDIR)/$(PY) >/dev/null
	cmake --build $(NATIVE)
	ctest --test-dir $(NATIVE) --output-on-failure

test-arm: env  ## the C++ tests for 64-bit Arm, emulated (apt install g++-aarch64-linux-gnu qemu-user)
	@cmake -S . -B build/arm -G Ninja -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64 \
	  -DCMAKE_EXE_LINKER_FLAGS=-static -DRHOVAE_BINDINGS=OFF >/dev/null
	cmake --build build/arm
	ctest --test-dir build/arm --output-on-failure

test-python: build test-native  ## the Python tests; PYTEST_ARGS="-k kl -x" is handed on
	$(PY) -m pytest $(PYTEST_ARGS)

sanitize: env  ## the C++ tests under the address, undefined-behaviour and thread sanitizers
	@for kind in address,undefined thread; do \
	  folder=build/sanitize-$${kind%%,*}; \
	  echo "sanitizers: $$kind"; \
	  cmake -S . -B $$folder -G Ninja -DRHOVAE_SANITIZE=$$kind >/dev/null \
	  && cmake --build $$folder && ctest --test-dir $$folder --output-on-failure || exit 1; \
	done

lint: env  ## ruff, mypy and clang-format, changing nothing
	ruff check .
	ruff format --check .
	mypy
	clang-format --dry-run -Werror $(CXX_FILES)

format: env  ## put Python and C++ into the house's form
	ruff check --fix .
	ruff format .
	clang-format -i $(CXX_FILES)

bench: build  ## the whole benchmark, the sweep and the targets, written to bench/results/
	$(PY) -m bench
	$(PY) -m bench.sweep
	$(PY) -m bench.targets

profile: env  ## instructions per element of the CPU kernels, counted by valgrind
	@cmake -S . -B $(NATIVE) -G Ninja -DPython_EXECUTABLE=$(CURDIR)/$(PY) >/dev/null
	cmake --build $(NATIVE) --target kernels
	$(PY) -m bench.profile

clean:  ## remove what was built (.venv stays)
	rm -rf build dist *.egg-info python/*.egg-info rhovae_ext/_C*.so $(INSTALLED) \
	  .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(ENV_READY): requirements/torch.txt requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "$(PYTHON) is missing or older than 3.10. Run: make PYTHON=python3.11 (3.10 to 3.13)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make environments. Run: sudo apt install python3-venv"; exit 1; }
	@echo "Making $(VENV), with $$(grep -v '#' requirements/torch.txt) pinned for reproducibility (the library takes 2.11-2.15)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install -qq -r requirements/torch.txt -r requirements/dev.txt
	@touch $@

$(INSTALLED): $(ENV_READY) $(SOURCES)
	$(PIP) install -qq --no-build-isolation --no-deps --editable .
	@$(PY) -c "import torch, rhovae_ext; print('built:', torch.ops.rhovae.build_info())"
	@touch $@
