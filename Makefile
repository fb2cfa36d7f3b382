# `make` lists the targets. Everything is installed into .venv and built under build/, both inside this folder.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
NATIVE := build/native
ENV_READY := $(VENV)/.ready
CUDA_VENV := .venv-cuda
CUDA_PY := $(CURDIR)/$(CUDA_VENV)/bin/python
CUDA_ENV_READY := $(CUDA_VENV)/.ready
CUDA_SOURCES := build/cuda
INSTALLED := $(VENV)/.installed
CXX_FILES = $(shell find csrc bench tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml
SANITIZED := build/sanitize-ext
PYTEST_ARGS ?=
RNG_ARGS ?=
FUZZ_MINUTES ?= 60
PYTHONS ?= $(PYTHON)
FUZZ_ARGS ?=
# Sanitizers' runtimes have to be loaded before Python's own libraries; Python itself leaks, and torch answers a
# request for more memory than there is with an error.
UNDER_SANITIZERS = LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
  ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1:max_allocation_size_mb=8192 \
  UBSAN_OPTIONS=abort_on_error=1:print_stacktrace=1
# A process a core, each with one thread: many small tests.
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help env build demo test test-native test-arm test-python sanitize fuzz fuzz-sanitized lint format bench profile rng-check wheel-check cuda-check gpu-report clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 16

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
	$(PYTEST) $(PYTEST_ARGS)

sanitize: env  ## C++ tests, emulated CUDA kernels and random calls of the extension under sanitizers
	@for kind in address,undefined thread; do \
	  folder=build/sanitize-$${kind%%,*}; \
	  echo "sanitizers: $$kind"; \
	  cmake -S . -B $$folder -G Ninja -DRHOVAE_SANITIZE=$$kind >/dev/null \
	  && cmake --build $$folder && ctest --test-dir $$folder --output-on-failure || exit 1; \
	done
	$(UNDER_SANITIZERS) PYTHONPATH=$(CURDIR) \
	  $(PYTEST) tests/cuda_emulator -o pythonpath="build/sanitize-address" $(PYTEST_ARGS)
	$(BUILD_SANITIZED)
	cd $(SANITIZED) && $(UNDER_SANITIZERS) OMP_NUM_THREADS=1 $(CURDIR)/$(PY) -m tests.fuzz --seed 1 --calls 1000

# A copy of the sources: the module in rhovae_ext/ stays as it is. Its core is the one that CMake has built.
define BUILD_SANITIZED
mkdir -p $(SANITIZED)
git ls-files -z --cached --others --exclude-standard | tar --null --no-recursion -T - -c | tar -x -C $(SANITIZED)
cd $(SANITIZED) && RHOVAE_CUDA=0 RHOVAE_SANITIZE=address,undefined \
  RHOVAE_CORE=$(CURDIR)/build/sanitize-address/librhovae_core_static.a $(CURDIR)/$(PY) setup.py -q build_ext --inplace
endef

fuzz: build  ## random calls for FUZZ_MINUTES=60; FUZZ_ARGS="--seed 7 --workers 4" is handed on
	OMP_NUM_THREADS=1 $(PY) -m tests.fuzz --minutes $(FUZZ_MINUTES) $(FUZZ_ARGS)

fuzz-sanitized: env  ## the same under the address and undefined-behaviour sanitizers
	@cmake -S . -B build/sanitize-address -G Ninja -DRHOVAE_SANITIZE=address,undefined >/dev/null
	cmake --build build/sanitize-address --target rhovae_core_static
	$(BUILD_SANITIZED)
	cd $(SANITIZED) && $(UNDER_SANITIZERS) OMP_NUM_THREADS=1 \
	  $(CURDIR)/$(PY) -m tests.fuzz --minutes $(FUZZ_MINUTES) $(FUZZ_ARGS)

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

rng-check: build  ## the noise through dieharder and 2^34 normals, written to docs/rng.md; hours, goes on where stopped
	@cmake -S . -B $(NATIVE) -G Ninja -DPython_EXECUTABLE=$(CURDIR)/$(PY) >/dev/null
	cmake --build $(NATIVE) --target words
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(PY) -m bench.rng $(RNG_ARGS)

wheel-check: env  ## one wheel, used under each of PYTHONS="python3.10 python3.13" in an environment of its own
	rm -rf build/wheels
	$(PIP) wheel -qq --no-cache-dir --no-build-isolation --no-deps -w build/wheels .
	@for python in $(PYTHONS); do \
	  $$python -m venv build/wheels/$$python \
	  && build/wheels/$$python/bin/python -m pip --disable-pip-version-check install -qq \
	    -r requirements/torch.txt build/wheels/*.whl \
	  && build/wheels/$$python/bin/python tests/build/use_wheel.py || exit 1; \
	done

# Of the CPU kernels' arithmetic and memory, whose code is the same beside every torch: `make test` has run them.
OF_THE_CPU_ALONE = --ignore=tests/ext/test_digits.py --ignore=tests/ext/test_small_stacks.py \
  --ignore=tests/ext/test_scratch.py
# Its own environment and its own copy of the sources: the module in rhovae_ext/ is the other environment's.
cuda-check: test-native $(CUDA_ENV_READY)  ## compile, link, import and read the CUDA kernels' machine code; no GPU needed
	mkdir -p $(CUDA_SOURCES)
	git ls-files -z --cached --others --exclude-standard | tar --null --no-recursion -T - -c | tar -x -C $(CUDA_SOURCES)
	cd $(CUDA_SOURCES) && RHOVAE_CUDA=1 TORCH_CUDA_ARCH_LIST="8.0;9.0;12.0" \
	  $(CUDA_PY) -m pip --disable-pip-version-check install -qq --no-build-isolation --no-deps --editable .
	cd $(CUDA_SOURCES) && RHOVAE_VECTORS=$${RHOVAE_VECTORS-$(CURDIR)/../shared/vectors} \
	  PYTHONPATH=$(CURDIR)/build/native $(PYTEST:$(PY)=$(CUDA_PY)) tests/ext $(OF_THE_CPU_ALONE) $(PYTEST_ARGS)
	cd $(CUDA_SOURCES) && $(CUDA_PY) -m bench.cuda_check rhovae_ext/_C*.so --out $(CURDIR)/build/cuda-budget.md

gpu-report:  ## on a machine with a GPU, with its own torch: build, tests on cuda, compute-sanitizer, benchmark
	$(PYTHON) -m bench.gpu_report

clean:  ## remove what was built (.venv stays)
	rm -rf build dist *.egg-info python/*.egg-info rhovae_ext/_C*.so $(INSTALLED) \
	  .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(ENV_READY): requirements/torch.txt requirements/dev.txt requirements/kernels.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "$(PYTHON) is missing or older than 3.10. Run: make PYTHON=python3.11 (3.10 to 3.13)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make environments. Run: sudo apt install python3-venv"; exit 1; }
	@echo "Making $(VENV), with $$(grep ^torch= requirements/torch.txt) pinned for reproducibility (the library takes 2.11-2.15)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install -qq -r requirements/torch.txt -r requirements/dev.txt
	@touch $@

$(CUDA_ENV_READY): requirements/cuda.txt requirements/kernels.txt $(ENV_READY)
	@echo "Making $(CUDA_VENV), with $$(grep ^torch= requirements/cuda.txt) (some gigabytes)"
	@test -x $(CUDA_PY) || $(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_PY) -m pip --disable-pip-version-check install -qq -r requirements/cuda.txt -r requirements/kernels.txt
	@touch $@

$(INSTALLED): $(ENV_READY) $(SOURCES)
	$(PIP) install -qq --no-build-isolation --no-deps --editable .
	@$(PY) -c "import torch, rhovae_ext; print('built:', torch.ops.rhovae.build_info())"
	@touch $@
