# make setup      project-local .venv with pip, everything installed, native core built; quick when nothing changed
# make demo       set-up, then dense, sparse + frozen + sieved, and dense training in the latter's time on the embedded data
# make test       set-up, then the tests            make test-full  the long matrices as well
# make test-triton  the GPU kernels with the oldest Triton, in its interpreter and ahead of time; part of make test-full
# make test-models  models of timm, transformers and others, stage by stage against the masked dense copy
# make test-integrations  levers under transformers, Accelerate, Lightning and torchdata, the examples, a user's types
# make test-cuda  the CUDA kernels on the CPU's emulator, sanitized, with planted faults, and by nvcc where there is one
# make test-native  the native core by itself, no Python    make test-aarch64  the same on emulated aarch64
# make docs       the pages and the API reference as a site in build/site, links checked
# make bench      set-up, then the CPU benchmarks   make lint, make format  style of Python and C++
# make bench-compare  speed-ups of a network and usual layers against the committed ones; fails where one fell beyond noise
#
# PYTHON=python3.12 make setup chooses the interpreter; a plain `make setup` takes the first that is new enough.

TORCH := torch==2.13.0
# What pyproject.toml asks of a build, in the environment itself: with it a rebuild compiles only what changed.
BUILD := setuptools pybind11 cmake ninja

BIN := .venv/bin
PARALLEL := -n 2 --dist worksteal
# CUDA C++ kernels are compiled where a GPU can run them; SPFDE_CUDA=1 make setup does so anyway, for every architecture.
export SPFDE_CUDA ?= $(if $(wildcard /dev/nvidiactl /dev/nvhost-gpu /dev/nvgpu),auto,0)

PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.10)
CXX_FILES = $(shell find csrc tests/native -name "*.cpp" -o -name "*.h" -o -name "*.cu" -o -name "*.cuh")

.PHONY: setup demo test test-full test-triton test-models test-integrations test-cuda test-native test-aarch64 \
  cross-tools bench bench-compare docs lint format
.DELETE_ON_ERROR:

setup: .venv/.installed

demo: setup
	$(BIN)/spfde train --preset spfde-digits --compare dense-in-time --overwrite --out runs/demo

# Two processes, whatever the machine: a test is hardly ever faster on more than one core. The oldest Triton is tried on one
# program of every kind; all of it is part of test-full.
test: setup
	$(BIN)/python -m pytest $(PARALLEL)
	$(MAKE) test-triton ONLY='-k "interpreted_pointwise or (representatives and 90-bf16)"'

test-full: setup
	$(BIN)/python -m pytest -m '' $(PARALLEL)
	$(MAKE) test-triton ONLY="-m ''"

# The GPU kernels once more with the oldest Triton that is supported; x86-64 alone has wheels of it for a CPU's torch.
OLD := build/triton-3.6
OLD_TRITON := triton==3.6.0 "numpy<2.4"

ifeq ($(shell uname -m),x86_64)
test-triton: setup $(OLD)/.installed
	PYTHONPATH=$(OLD) TRITON_CACHE_DIR=$(OLD)/cache $(BIN)/python -m pytest tests/kernels/triton $(PARALLEL) $(ONLY)
else
test-triton: setup
endif

$(OLD)/.installed:
	$(BIN)/python -m pip install --upgrade --target $(OLD) $(OLD_TRITON)
	@touch $@

# Models of other libraries and other people's trainers, each in an environment of its own that sees .venv's packages and
# leaves them as they are. $(TORCH) once more: what they import may be made for one torch. ONLY='-k bert' tries a part.
test-models: setup build/models/.installed
	build/models/bin/python -m pytest tests/models_sweep/sweep.py tests/models_sweep/tied.py tests/models_sweep/timm_recipe.py \
	  $(PARALLEL) $(ONLY)

# No folder beside a file in it: with pytest 9 the folder stands for both, and what is not called test_*.py is left out.
test-integrations: setup build/integrations/.installed
	build/integrations/bin/python -m pytest $(wildcard tests/integrations/test_*.py) tests/integrations/examples.py \
	  tests/integrations/typed.py $(PARALLEL) $(ONLY)

docs: setup build/docs/.installed
	NO_MKDOCS_2_WARNING=1 build/docs/bin/mkdocs build --strict

# A smoke of it, the products on the emulator, is part of make test, all of it of test-full.
test-cuda: setup
	$(BIN)/python -m pytest -m '' tests/kernels/cuda $(PARALLEL) $(ONLY)

SITE := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

build/%/.installed: .venv/.installed
	$(BIN)/python -m venv --clear $(@D)
	echo "import site; site.addsitedir('$$($(BIN)/python $(SITE))')" > "$$($(@D)/bin/python $(SITE))/base.pth"
	$(@D)/bin/python -m pip install 'spfde[$*]' $(TORCH)
	@touch $@

# Both build only csrc and tests/native, so that a CPU without a torch of its own can be tried; QEMU=... names another one.
CROSS := aarch64-linux-gnu
QEMU := $(firstword $(foreach name,qemu-aarch64 qemu-aarch64-static,$(shell command -v $(name))))

test-native: setup
	$(BIN)/cmake -S . -B build/native -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DSPFDE_TESTS=ON
	$(BIN)/cmake --build build/native
	build/native/spfde_tests

test-aarch64: cross-tools setup
	$(BIN)/cmake -S . -B build/aarch64 -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DSPFDE_TESTS=ON \
	  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(CROSS)-g++
	$(BIN)/cmake --build build/aarch64
	$(QEMU) -L /usr/$(CROSS) build/aarch64/spfde_tests

cross-tools:
	@command -v $(CROSS)-g++ >/dev/null || { \
	  echo "spfde: expected $(CROSS)-g++, found none, try: apt install g++-$(CROSS)" >&2; exit 1; }
	@test -n "$(QEMU)" || { echo "spfde: expected qemu-aarch64, found none, try: apt install qemu-user" >&2; exit 1; }

bench: .venv/.bench
	$(BIN)/python benchmarks/layers.py --json runs/bench/layers.json
	$(BIN)/python benchmarks/plot.py runs/bench/layers.json

# One thread, by the processor's time: others on the machine count little. The committed record is one of the same
# instruction set where there is one. AGAINST=FILE compares with a record of your own.
COMPARED := --model resnet20 --no-layers --linear 1024x1024 --linear 768x192 --conv 64x64x3x3@16 --conv 16x16x3x3@32 \
  --conv 256x256x3x3@8 --conv 256x64x1x1@16 --conv 64x32x3x3@16/2 --batch 32 --sparsity 0.9 --sparsity 0.95
ISA = $(shell $(BIN)/python -c 'from spfde._native import native; print(native().isa())')
RECORDS = benchmarks/results/bench-amd-epyc-$(1)-1t-*.json
AGAINST = $(lastword $(sort $(or $(wildcard $(call RECORDS,$(ISA))),$(wildcard $(call RECORDS,avx2)))))

bench-compare: setup
	$(BIN)/spfde bench $(COMPARED) --device cpu --threads 1 --clock processor --json runs/bench/compare.json \
	  --against $(AGAINST)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# Directories count as well: deleting a source changes only its folder.
.venv/.installed: $(BIN)/python pyproject.toml setup.py CMakeLists.txt $(shell find csrc)
	$(BIN)/python -m pip install $(BUILD) $(TORCH)
	$(BIN)/python -m pip install --no-build-isolation -e '.[dev]'
	@touch $@

# The peers. One that does not build is listed as not installed. SparseProp asks the python3 on PATH where pybind11 is.
.venv/.bench: .venv/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --no-build-isolation -e '.[bench]' || \
	  echo "spfde: expected SparseProp to build, got an error, going on without it" >&2
	@touch $@

# A candidate is run, not only looked up: version managers leave shims on PATH that exist and fail.
$(BIN)/python:
	@for python in $(PYTHONS); do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || continue; \
	  new="$$new $$python"; \
	  "$$python" -c 'import ensurepip, venv' 2>/dev/null || continue; \
	  echo "spfde: making .venv with $$python"; \
	  exec "$$python" -m venv --clear --upgrade-deps .venv; \
	done; \
	if [ -n "$$new" ]; then \
	  echo "spfde: expected Python's venv module, found none in$$new, try: apt install python3-venv" >&2; \
	else \
	  echo "spfde: expected Python >= 3.10, found none of $(PYTHONS), try: PYTHON=/path/to/python make setup" >&2; \
	fi; \
	exit 1
