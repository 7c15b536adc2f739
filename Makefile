# The two commands to begin with are `make run` and `make demo`; `make` alone lists all.

.DEFAULT_GOAL := help

PYTHON := .venv/bin/python
export PYTHONPATH := services:.

LOCK := .venv/bin/uv --quiet pip compile --universal --python-version 3.11 --generate-hashes --no-header --upgrade

# A Kubernetes on this machine that builds images itself, for machines without docker.
export LOCAL_CLUSTER ?= $(abspath $(wildcard ../shared/cluster/cluster))

.PHONY: help run demo shell test lint bench chaos simulation soak profile docs lock clean images up deploy e2e bench-cluster down

help: ## Say what can be made
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1: /p' $(MAKEFILE_LIST)

run: .venv/ready ## Run everything until Ctrl-C: servers, services, projectors
	@$(PYTHON) -m local.run

demo: .venv/ready ## Play the guide's six requests, beside a running system
	@$(PYTHON) -m local.demo

shell: .venv/ready ## Open a shell where a process of `make run` is: IN=order-service
	@$(PYTHON) -m local.inside $(or $(IN),order-service)

test: .venv/ready ## Run all tests, on fakes and on real servers of their own
	@$(PYTHON) -m pytest --ignore=tests/bench --ignore=tests/e2e

lint: .venv/ready ## Check style, types, import rules, and what is insecure
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-logo
	@$(PYTHON) -m local.audit

bench: .venv/ready ## Measure all beside its ceiling and write docs/performance.md; or print one: ROW=P8
	@$(PYTHON) -m tests.bench $(ROW)

profile: .venv/ready ## Print in which parts of the code a command's time goes, process by process
	@$(PYTHON) -m tests.bench.profile

chaos: .venv/ready ## Simulate 10,000 runs, then make every fault of docs/chaos.md under load; SEED=... ROW=... replay
	@$(if $(ROW),,$(PYTHON) -m tests.sim --seeds 10000)
	@$(PYTHON) -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(ROW),--row $(ROW))

simulation: .venv/ready ## Run SEEDS=10000 of the simulation, the suite against itself, and 2,000 examples of the store
	@$(PYTHON) -m tests.sim --seeds $(or $(SEEDS),10000)
	@$(PYTHON) -m tests.sim --mutants
	@STORE_EXAMPLES=2000 $(PYTHON) -m pytest tests/integration/test_store_properties.py

soak: .venv/ready ## Run for MINUTES=30 at half of what goes: memory, lag and errors must stay flat
	@$(PYTHON) -m tests.chaos soak --minutes $(or $(MINUTES),30)

docs: .venv/ready ## Write the chart's values into its README; dashboards, alerts and init.sql into it
	@$(PYTHON) -m local.chart_docs
	@$(PYTHON) -m local.panels
	@cp init.sql charts/shop/files/init.sql

lock: .venv/ready ## Lock the newest versions that requirements.in allows, with hashes
	@.venv/bin/python -m pip --quiet --disable-pip-version-check install uv
	@$(LOCK) --output-file requirements.txt requirements.in
	@$(LOCK) --output-file services/requirements.txt --constraint requirements.txt services/requirements.in
	@$(LOCK) --output-file services/requirements-dev.txt --constraint requirements.txt services/requirements-dev.in

images: ## Build the images and bring them into the current cluster
	@local/make-images

up: ## Make a kind cluster with an ingress and install everything; OBSERVABILITY=1 adds dashboards
	@local/cluster-up

deploy: images ## Install or upgrade everything on the current cluster; OBSERVABILITY=1 too
	@local/deploy

e2e: .venv/ready images ## Test the chart on the current cluster, through its ingress
	@$(PYTHON) -m pytest tests/e2e

bench-cluster: .venv/ready images ## Measure installing and recovering on the current cluster
	@$(PYTHON) -m tests.bench.cluster

down: ## Remove the kind cluster and all that is on it
	@local/cluster-up --remove

clean: ## Remove the data of `make run`
	@python3 -m local.clean .data

# Made anew when the lock has changed; --require-hashes takes nothing that is not locked.
.venv/ready: requirements.txt
	@local/make-venv .venv requirements.txt
	@touch $@
