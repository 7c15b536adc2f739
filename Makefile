# The two commands to begin with are `make run` and `make demo`; `make` alone lists all.

.DEFAULT_GOAL := help

# `make test PYTHON=python3.11` uses another Python, in a virtual environment of its own.
VENV := .venv$(if $(PYTHON),-$(notdir $(PYTHON)))
RUN := $(VENV)/bin/python

UV = $(or $(shell command -v uv),$(VENV)/bin/uv)
LOCK = $(UV) --quiet pip compile --universal --python-version 3.11 --generate-hashes --no-header
SCHEMA = $(VENV)/bin/check-jsonschema --quiet --builtin-schema

.PHONY: help run demo shell clean unit test lint format chaos simulation soak bench profile docs contracts pictures lock images up deploy ui rotate down e2e bench-cluster

help: ## List the targets
	@sed -n -e 's/^##@ \(.*\)/\n\1/p' -e 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

##@ Run it on this machine

run: $(VENV)/ready ## Run servers, services and projectors until Ctrl-C; HOST=0.0.0.0 listens for others; AUTH=on; SERVERS=compose
	@$(RUN) -m local.run $(if $(filter command line,$(origin HOST)),--host $(HOST)) \
	    $(if $(filter on,$(AUTH)),--auth) $(if $(SERVERS),--servers $(SERVERS)) $(if $(filter-out 0,$(OBSERVABILITY)),--observability)

demo: $(VENV)/ready ## Play the journey in six requests, beside `make run`; BROWSER=1 slowly, to watch it on the page
	@$(RUN) -m local.demo $(if $(filter-out 0,$(BROWSER)),--browser)

shell: $(VENV)/ready ## Open a shell for the operator's tools, beside `make run`; IN=order-service is that process's own
	@$(RUN) -m local.inside $(IN)

clean: ## Remove the data of `make run`
	@python3 -m local.clean .data

##@ Test it

unit: $(VENV)/ready-dev ## Run the tests that need no server: rules, journeys on fakes, the fakes' contracts
	@$(RUN) -m pytest -p no:schemathesis --hypothesis-profile=quick -m "not servers" tests/unit tests/flow tests/contract

test: $(VENV)/ready-dev ## Run all tests but those of the cluster and the benchmarks; RabbitMQ by apt
	@$(RUN) -m local.packages
	@failed=0; try() { $(RUN) -m pytest --maxfail=40 --durations=20 "$$@" || failed=1; }; \
	try --numprocesses=auto --dist=loadfile --ignore=tests/bench --ignore=tests/e2e --ignore=tests/integration tests; \
	try tests/integration; \
	exit $$failed

lint: $(VENV)/ready-dev ## Check style, types, import rules, contracts, workflows and insecure code; shows the problems of all tools
	@failed=0; try() { "$$@" || failed=1; }; \
	try $(VENV)/bin/ruff check; \
	try $(VENV)/bin/ruff format --check; \
	try $(VENV)/bin/mypy; \
	try $(RUN) -m local.import_rules; \
	try $(RUN) -m local.budgets; \
	try $(RUN) -m local.contracts --check; \
	try $(SCHEMA) vendor.github-workflows .github/workflows/*.yml; \
	try $(SCHEMA) vendor.dependabot .github/dependabot.yml; \
	try $(SCHEMA) vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml; \
	try $(SCHEMA) vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/feature.yml; \
	try $(SCHEMA) vendor.compose-spec compose.yaml; \
	if command -v actionlint >/dev/null; then try actionlint; fi; \
	try $(RUN) -m local.audit; \
	exit $$failed

format: $(VENV)/ready-dev ## Format the code, and correct what ruff can
	@$(VENV)/bin/ruff check --fix-only --quiet
	@$(VENV)/bin/ruff format

chaos: $(VENV)/ready-dev ## Simulate 10,000 runs, then make every fault of docs/chaos.md under load; SEED=... ROW=... replay
	@$(if $(ROW),,$(RUN) -m tests.sim --seeds 10000)
	@$(RUN) -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(ROW),--row $(ROW))

simulation: $(VENV)/ready-dev ## Run SEEDS=10000 of the simulation, the suite against itself, and 2,000 examples of the store
	@$(RUN) -m tests.sim --seeds $(or $(SEEDS),10000)
	@$(RUN) -m tests.sim --mutants
	@STORE_EXAMPLES=2000 $(RUN) -m pytest tests/integration/test_store_properties.py

soak: $(VENV)/ready-dev ## Run for MINUTES=30 at half of the capacity; memory, lag and errors must stay flat
	@$(RUN) -m tests.chaos soak --minutes $(or $(MINUTES),30)

##@ Measure it

bench: $(VENV)/ready-dev ## Print rates and latencies beside bare clients of each server; one row: ROW=P8
	@$(RUN) -m tests.bench $(ROW)

profile: $(VENV)/ready-dev ## Print the CPU time of a write and of a read, by process and library
	@$(RUN) -m tests.bench.profile

##@ Run it on Kubernetes

up: ## Make a kind cluster with an ingress and install everything; OBSERVABILITY=1 adds dashboards
	@local/cluster-up

images: ## Build the images and bring them into the current cluster
	@local/make-images

deploy: images ## Install or upgrade everything on the current cluster; OBSERVABILITY=1 as well
	@local/deploy

ui: ## Open the shop, Grafana, Prometheus, Jaeger and RabbitMQ's page on local ports, until Ctrl-C
	@NAMESPACE=$(or $(NAMESPACE),shop) local/ui

rotate: ## Give every login a new password, on the current cluster
	@local/rotate --namespace $(or $(NAMESPACE),shop)

down: ## Remove the kind cluster and everything on it
	@local/cluster-up --remove

e2e: $(VENV)/ready-dev images ## Test the chart on the current cluster, through its ingress
	@$(RUN) -m pytest tests/e2e

bench-cluster: $(VENV)/ready-dev images ## Measure installing and recovering on the current cluster
	@$(RUN) -m tests.bench.cluster

##@ Keep it in order

docs: $(VENV)/ready-dev ## Write the chart's values into its README; dashboards, alerts and init.sql into it
	@$(RUN) -m local.chart_docs
	@$(RUN) -m local.panels
	@cp init.sql charts/shop/files/init.sql

contracts: $(VENV)/ready ## Write the events' schemas and golden events into contracts/, where the rules allow it
	@$(RUN) -m local.contracts

pictures: $(VENV)/ready-dev ## Draw docs/images, beside `make run`, from SECONDS=300 of calls; with npm and chromium
	@$(RUN) -m local.picture
	@$(RUN) -m local.page_pictures
	@$(RUN) -m local.panels.pictures $(if $(SECONDS),--seconds $(SECONDS))

lock: $(VENV)/ready ## Lock the newest versions within the bounds of the requirements.in files, with hashes
	@$(LOCK) --upgrade --output-file tests/requirements.txt tests/requirements.in
	@for each in requirements services/requirements services/requirements-dev; do \
	    $(LOCK) --constraint tests/requirements.txt --output-file $$each.txt $$each.in || exit; done
	@$(LOCK) --upgrade --output-file local/uv.txt local/uv.in

# Installed again when a lock has changed; --require-hashes takes nothing that is not locked.
$(VENV)/ready: requirements.txt local/uv.txt local/make-venv
	@local/make-venv $(VENV) requirements.txt
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready tests/requirements.txt
	@local/make-venv $(VENV) tests/requirements.txt
	@touch $@
