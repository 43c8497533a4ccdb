# What a user or a developer runs; `make` alone lists it. PYTHON and VENV choose the interpreter and the environment.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help install score test test-all browser lint bench kernels tiny-checkpoint experiment pictures clean

PYTHON ?= python3.11
VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --no-input --disable-pip-version-check --quiet
# FASTALTER_STRICT turns a skipped test into a failure, unless its reason is that no ground truth was given.
PYTEST := FASTALTER_STRICT=1 $(PY) -m pytest
# Triton's interpreter and its compiler break each other in one process: its kernels have a run of their own.
INTERPRETED := TRITON_INTERPRET=1 $(PYTEST) tests/kernels/interpreted
CSRC := $(shell find csrc -type f)

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.package  ## make .venv and install the package into it, editable; does nothing when nothing changed

score: install  ## score the embedded checkpoint on synthetic samples, artifacts in out/
	@mkdir -p out
	$(PY) -m fastalter.score fastalter/assets/bevfusion_tiny.pth --ratio 0.8 \
	    --out out/scores.safetensors --mask out/mask.safetensors --plot out/kept.png

test: install browser  ## what a change can break; minutes
	$(PYTEST) -m "not slow" --benchmark-disable tests bench
	$(INTERPRETED) -m "not slow"

test-all: install browser  ## everything: sanitizers, every architecture, full-size models; writes docs/test-all.txt
	{ $(PYTEST) --benchmark-disable tests bench && $(INTERPRETED); } | tee $(VENV)/test-all.log
	{ printf '%s, commit %s\n' "$$(date -u +%F)" "$$(git rev-parse --short HEAD)"; grep -E '^=*.* (passed|failed).* in ' $(VENV)/test-all.log; } > docs/test-all.txt

browser:  ## a Chromium for the report's tests, where there is none (Debian, as root)
	@for name in "$(CHROMIUM)" chromium chromium-browser google-chrome; do command -v "$$name" >/dev/null && exit 0; done; \
	    echo "installing chromium"; apt-get update -qq && apt-get install -y -qq chromium >/dev/null || \
	    { echo "error: no Chromium: install one, or let CHROMIUM= name it" >&2; exit 1; }

lint: install  ## ruff, mypy, clang-format and the layering rules
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(filter %.h %.hpp %.cpp %.cu %.cuh,$(CSRC))
	$(PYTEST) -q tests/test_layering.py

bench: install  ## time every op beside its reference and its peers, then the whole jobs they serve
	$(PY) -m bench.table
	$(PY) -m bench.bulk
	$(PY) -m bench.fuse
	$(PY) -m bench.compaction
	$(PY) -m bench.structure
	$(PY) -m bench.peers

kernels: install  ## compile every GPU kernel for every architecture and write docs/kernels.md
	$(PY) -m bench.static

tiny-checkpoint: install  ## make the embedded checkpoint anew: data, three trainings, evaluation; about an hour
	$(PY) -m recipes.tiny_checkpoint

experiment: install  ## every criterion, ratio, regime and seed; hours; goes on where it stopped
	$(PY) -m recipes.experiment
	$(PY) -m recipes.experiment.tables

pictures: install  ## draw the README's pictures again
	$(PY) -m recipes.picture docs/sample.png
	$(PY) -m fastalter.score fastalter/assets/bevfusion_tiny.pth --ratio 0.8 --plot docs/kept.png

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build out *.egg-info fastalter/*.so fastalter/ops/*.so

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not on the PATH: install it or give PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

# The build runs without isolation, so what it needs (torch above all) is there before it.
$(VENV)/.build-tools: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing torch and the build tools (about 3 GB on a first run)"
	$(PIP) install -c constraints.txt $$($(PY) -c \
	    'import tomllib; print(*(r.replace(" ", "") for r in tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"]))')
	touch $@

$(VENV)/.package: $(VENV)/.build-tools setup.py CMakeLists.txt $(CSRC)
	@echo "installing fastalter (editable) and its tools"
	$(PIP) install --no-build-isolation -c constraints.txt -e '.[dev,peers,export]'
	touch $@
