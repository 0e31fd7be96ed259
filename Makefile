# One command each for the things people do; `make help` lists them. Run again, each skips what is done.
#   PYTHON     the interpreter that .venv is made from; builds custom_ops.so where there is no .venv
#   CXX        the C++ compiler
#   CXXFLAGS   its flags, on top of what torch or the Poplar SDK need

PYTHON ?= python3
CXXFLAGS ?= -O3
VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
NATIVE := portable/poptorch/device/native
OF_PORTABLE := $(NATIVE)/poptorch_kernels.so $(NATIVE)/poptorch_tensor_memory.so

# On an IPU host the SDK's wheels bring poptorch and its torch; elsewhere portable/ does.
ifeq ($(POPLAR_SDK_ENABLED),)
PORTABLE := portable/pyproject.toml
INSTALL_PORTABLE := -e ./portable
endif

# The name of a stamp says what was installed: it changes with these files, and then setup runs again.
REQUIREMENTS := requirements.txt constraints.txt $(PORTABLE)
STAMP := $(VENV)/.stamp-$(shell cat $(REQUIREMENTS) 2>/dev/null | cksum | tr ' ' '-')
DEV_STAMP := $(VENV)/.stamp-dev-$(shell cat $(REQUIREMENTS) $(sort $(wildcard requirements-*.txt)) 2>/dev/null | cksum | tr ' ' '-')
PLOTS_STAMP := $(VENV)/.stamp-plots-$(shell cat $(REQUIREMENTS) requirements-plots.txt 2>/dev/null | cksum | tr ' ' '-')

.PHONY: build setup setup-dev demo seeds test test-gpu test-long test-harness test-programs test-checkpoints test-browser lint clean help bench-compare
.DEFAULT_GOAL := build

build: ## custom_ops.so for what the host has, and the C++ of tokenizer/, data/ and portable/ (the default)
	@python=$(VENV_PYTHON); [ -x $$python ] || python="$(PYTHON)"; \
	if ! command -v $$python >/dev/null 2>&1; then \
		echo "custom_ops: $(PYTHON) is not found; install Python 3.10 or newer, or name it: make PYTHON=python3.11"; \
		exit 1; \
	fi; \
	$$python -m custom_ops.build --cxx="$(CXX)" --cxxflags="$(CXXFLAGS)"

setup: $(STAMP) ## .venv with the pinned libraries; without an SDK also portable/ and torch
	@echo "setup: $(VENV) is up to date"

setup-dev: $(DEV_STAMP) ## setup, and what tests and benchmarks need

$(VENV_PYTHON):
	@if [ -z "$(POPLAR_SDK_ENABLED)" ] && ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then \
		echo "setup: Python 3.10 or newer is needed, and $(PYTHON) is none. HINT: make $(MAKECMDGOALS) PYTHON=python3.11"; \
		exit 1; \
	fi
	@$(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); \
		echo "setup: $(PYTHON) made no virtual environment. HINT: apt install python3-venv, or another PYTHON=…"; \
		exit 1; \
	}

$(STAMP): | $(VENV_PYTHON)
	$(VENV_PYTHON) -m pip install --disable-pip-version-check -r requirements.txt -c constraints.txt $(INSTALL_PORTABLE)
ifneq ($(POPLAR_SDK_ENABLED),)
	@$(VENV_PYTHON) -c 'import sys, importlib.util as u; sys.exit(u.find_spec("poptorch") is None)' || \
		echo "setup: poptorch comes with the SDK: $(VENV)/bin/pip install <Poplar SDK>/poptorch-*.whl"
endif
	@rm -f $(VENV)/.stamp-* && touch $@

$(DEV_STAMP): $(STAMP)
	$(VENV_PYTHON) -m pip install --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	@rm -f $(VENV)/.stamp-dev-* && touch $@

$(PLOTS_STAMP): $(STAMP)
	$(VENV_PYTHON) -m pip install --disable-pip-version-check -r requirements-plots.txt -c constraints.txt
	@rm -f $(VENV)/.stamp-plots-* && touch $@

# PWD is where the caller stands, also after make -C.
demo: setup $(PLOTS_STAMP) ## a small GPT-2 learns Wikipedia text, in a few minutes, and its curves are drawn
	-@$(MAKE) --no-print-directory build
	CALLED_FROM="$(PWD)" bash run/demo.sh

# PARTS: of sharing, postln, alibi, speed and warmup; all of them without it
seeds: setup ## what the systems beside GPT-2 show at a small scale: docs/seeds.md; 22 minutes of processor time
	-@$(MAKE) --no-print-directory build
	$(VENV_PYTHON) -m benchmarks.seeds $(if $(PARTS),--parts $(PARTS))

test: setup-dev ## the tests that need no GPU
	@$(MAKE) --no-print-directory build
	# A process a core, up to four, and one thread in each: the tests' tensors are too small for two threads to help.
	# Files in their order: those with many tests first would leave the longest, which have few, to one process at the end.
	# Modules are compiled once, whatever the environment says: the tests start some hundred processes that import them.
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n auto --maxprocesses 4 --dist loadfile \
		--no-loadscope-reorder

# -rs: what is missing for the tests that are skipped.
test-gpu: setup-dev ## the tests that need a CUDA device
	$(VENV_PYTHON) -m pytest -m gpu -rs

test-harness: setup-dev ## lm-evaluation-harness against its own model; installs requirements-evaluation.txt, 600 MB
	$(VENV_PYTHON) -m pip install --disable-pip-version-check -r requirements-evaluation.txt -c constraints.txt
	$(VENV_PYTHON) -m pytest -m harness

test-browser: setup-dev ## the server's page and reports in headless Chromium (CHROMIUM=/path, or as Debian installs it)
	CHROMIUM="$(CHROMIUM)" $(VENV_PYTHON) -m pytest -m browser -rs

# GROUPS: of transformers, torchvision, lightning and optimum-graphcore; all of them without it
test-programs: setup-dev ## libraries written for PopTorch on portable/, each in an environment of its own; 4 GB
	$(VENV_PYTHON) portable/tests/libraries/run.py $(GROUPS)

test-checkpoints: setup-dev ## model.convert against megatron-core, llama.cpp and gguf; installs requirements-benchmarks.txt
	$(VENV_PYTHON) -m pip install --disable-pip-version-check -r requirements-benchmarks.txt -c constraints.txt
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -m programs tests/model/test_convert_libraries.py

test-long: setup-dev ## the tests that take minutes: fuzzing of the readers
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -m long --timeout 1800

# Entries of benchmarks.yml that a machine without accelerator does in minutes; BENCH=… names others.
BENCH ?= $(addsuffix _cpu_2core,$(addprefix pytorch_gpt2_,test_train_gen small_train_gen small_infer_gen small_text_gen small_vs_transformers))
bench-compare: setup-dev ## measures the CPU benchmarks anew, beside the recorded figures
	$(VENV_PYTHON) -m examples_utils benchmark --spec benchmarks.yml --benchmark $(BENCH) \
		--log-dir benchmark_logs/compare || [ $$? -eq 1 ] # what failed has no figure below
	$(VENV_PYTHON) benchmarks/compare.py benchmark_logs/compare/benchmark_results.json

lint: setup-dev ## format and lint checks, nothing is changed
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/clang-format --dry-run --Werror custom_ops/*.cpp tokenizer/*.cpp data/*/*.cpp \
		$(NATIVE)/*.cpp $(NATIVE)/*.h

clean: ## removes what `make` builds; .venv stays
	rm -f custom_ops.so bpe_encoder.so megatron_data.so $(OF_PORTABLE) *.so.unfinished $(addsuffix .unfinished,$(OF_PORTABLE))

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' Makefile
