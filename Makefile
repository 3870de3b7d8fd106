# The chores of this tree. `make` alone lists them; what takes more than a line is in scripts/.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
PYTHON ?= python3
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-input
C_SOURCES := $(shell find init -name '*.[ch]')
SOURCES := $(C_SOURCES) pyproject.toml meson.build init/meson.build README.md LICENSE \
	$(shell find src -type f -not -path '*/__pycache__/*' -not -path '*/_bin/*')
SYSTEM := build/.system
PACKAGES := .venv/.packages
INIT := src/retort/_bin/retort-init
RETORT := .venv/.retort
CLIENTS := .venv-client/.packages .venv-client-1/.packages

.PHONY: help setup check test test-vm test-here bench hostile stability chaos soak thousand docs serve demo fuzz clean clients

help:    ## list these verbs
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 10

setup: $(RETORT) $(INIT)    ## install what is missing, build retort and retort-init into .venv

check: $(PACKAGES)    ## lint, format, types and architecture
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python -m pytest tests/test_architecture.py

test: setup clients    ## run every test, two at a time; T="..." is handed to pytest
	@PYTHON=$(PYTHON) scripts/system-packages --tests
	.venv/bin/python -m pytest --numprocesses 2 --dist worksteal -r fEs $(T)

test-vm: $(INIT)    ## run what depends on the host in a virtual machine with cgroups v2
	vm/test

test-here: setup    ## run the same here: as root, as an ordinary user, without control groups
	@PYTHON=$(PYTHON) scripts/system-packages --tests
	.venv/bin/python scripts/test-here

bench: setup    ## measure, each figure beside its floor
	.venv/bin/python -m bench $(B)

hostile: setup    ## run a thousand hostile programs, check verdicts and leftovers
	.venv/bin/python -m bench.hostile $(B)

stability: setup    ## run programs just under and over each limit beside other load
	.venv/bin/python -m bench.stability $(B)

chaos: setup    ## kill the server five hundred times beneath mixed clients; nothing may be lost
	.venv/bin/python -m bench.chaos $(B)

soak: setup    ## run mixed clients for ten minutes; nothing may grow
	.venv/bin/python -m bench.soak $(B)

thousand: setup    ## hold a thousand sessions, fifty busy, and kill the server
	.venv/bin/python -m bench.thousand $(B)

docs: setup    ## check that the docs name everything there is
	.venv/bin/python -m pytest tests/test_docs.py

serve: setup    ## run the server on 127.0.0.1:8090 until Ctrl-C
	.venv/bin/retort serve

demo: setup    ## build and run a small C project in a sandbox
	scripts/demo

fuzz:    ## throw nonsense at retort-init for a minute; needs clang
	scripts/fuzz-init $(F)

clean:    ## remove all that these verbs made
	rm -rf .venv .venv-client .venv-client-1 build dist .cache/vm src/retort/_bin \
		.mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests bench -name __pycache__ -prune -exec rm -rf {} +

# Looked for once; .ci/run always looks.
$(SYSTEM): scripts/system-packages
	PYTHON=$(PYTHON) scripts/system-packages
	mkdir -p $(@D)
	touch $@

$(PACKAGES): requirements/dev.lock | $(SYSTEM)
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP_INSTALL) --require-hashes -r $<
	touch $@

$(INIT): $(C_SOURCES) scripts/build-init | $(SYSTEM)
	scripts/build-init

# A wheel as users get it. ninja and meson are the environment's own.
$(RETORT): $(SOURCES) $(PACKAGES)
	PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python $(PIP_INSTALL) --no-index --no-deps \
		--no-build-isolation --force-reinstall .
	touch $@

clients: $(CLIENTS)

.venv-client/.packages: requirements/client.lock scripts/client-environment | $(SYSTEM)
	PYTHON=$(PYTHON) scripts/client-environment $(@D) $<

.venv-client-1/.packages: requirements/client-1.lock scripts/client-environment | $(SYSTEM)
	PYTHON=$(PYTHON) scripts/client-environment $(@D) $<
