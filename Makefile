# `make help` lists the targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Each process of a multi-process run gets its own threads from the launcher; DeepSpeed runs on the CPU here.
export DS_ACCELERATOR ?= cpu

.PHONY: help setup demo demo-kubernetes test check format fuzz-tokens chaos chaos-kubernetes bench clean

help:
	@echo 'make setup   make .venv from requirements.lock (nothing to do when it is current)'
	@echo 'make demo    the whole pipeline on this CPU: data, model, tokenize, finetune, evaluate, serve'
	@echo 'make demo-kubernetes   the same as Kubernetes Jobs, on a test cluster on this machine'
	@echo 'make test    the tests'
	@echo 'make check   lint, format and types'
	@echo 'make format  put the format right'
	@echo 'make fuzz-tokens, make chaos   random texts, random kills, for MINUTES=10 (texts also until DOCUMENTS=1000000)'
	@echo 'make chaos-kubernetes   kill a node of two, and the orchestrator at each request that it makes (an hour)'
	@echo 'make images  the images of steps and orchestrator, by docker, podman or buildah'
	@echo 'make bench   the benchmarks, each against a peer in the same run'

setup: $(VENV)/installed

# The stamp is written last: a set-up that was interrupted is done again.
$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo 'Python 3.11 is needed (got: $(PYTHON)). Say where it is: make PYTHON=... setup' >&2; exit 78; }
	@echo 'Setting up $(VENV): about three minutes the first time'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

# What a user would type; `demo.yaml` holds the parameters.
demo: setup
	$(BIN)/python -m trainer.demo --volume finetune-data
	@# Nothing is left running, however the run ends: it may fail after its server took over.
	@trap '$(BIN)/finetune stop demo' EXIT; trap 'exit 130' INT TERM; set -ex; \
	  $(BIN)/finetune run --params demo.yaml; $(BIN)/finetune ask demo 'The sheriff'

demo-kubernetes: setup
	$(BIN)/python -m trainer.demo --volume finetune-data
	$(BIN)/python -m tests.kubernetes.demo --params demo.yaml

test: setup
	@# In the order of their names: the longest files come early, and no worker waits at the end.
	@# Three workers for two cores: a quarter of the time a test waits, for a server or a signal.
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

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

chaos: setup
	@$(BIN)/python -m tests.training.chaos --minutes $(MINUTES)

chaos-kubernetes: setup
	@$(BIN)/python -m tests.kubernetes.several_nodes_killed
	@$(BIN)/python -m tests.kubernetes.chaos

bench: setup
	@$(BIN)/python -m benchmarks

# Two images: steps (CUDA, no Prefect) and orchestrator (Prefect, no torch); not built here.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
BUILDER ?= $(shell command -v docker || command -v podman || command -v buildah)
.PHONY: images
images:
	@test -n '$(BUILDER)' || { echo 'BUILDER is not there (got none of docker, podman, buildah on PATH).' \
	  'Install one of them, or name yours: make images BUILDER=...' >&2; exit 78; }
	@for image in steps orchestrator; do \
	  $(BUILDER) build -f infra/images/$$image.Dockerfile -t finetune-$$image:$(VERSION) . || exit 1; \
	done

clean:
	rm -rf $(VENV) *.egg-info
