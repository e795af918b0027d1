# Two commands matter to a newcomer: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

.DEFAULT_GOAL := help

.PHONY: help
help: ## show what there is
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | column -t -s "$$(printf '\t')"

$(VENV)/installed: setup.cfg setup.py pyproject.toml
	@echo "installing into $(VENV) (once; some 700 MB of numpy, faiss, hdbscan and friends)"
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11 to 3.13 is needed; say make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

.PHONY: install
install: $(VENV)/installed ## make .venv and install everything

$(VENV)/deploy-installed: $(VENV)/installed
	@echo "installing what checks images and charts into $(VENV) (once; some 150 MB)"
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[deploy]'
	@touch $@

.PHONY: demo
demo: $(VENV)/installed ## the main job for real, on real pictures: make demo [ARGS=--keep]
	@$(BIN)/sploot-cluster demo $(ARGS)

.PHONY: test
test: $(VENV)/installed ## the whole suite, on a real redis-server: make test [ARGS='-k merge']
	@$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

.PHONY: test-faults
test-faults: $(VENV)/installed ## everything goes wrong for minutes; is anything lost? make test-faults [ARGS=--short]
	@$(BIN)/python -m tests.faults $(ARGS)

.PHONY: broker-wheel
broker-wheel: $(VENV)/installed ## build the broker as a distribution of its own into dist/
	@$(BIN)/python -m deploy.broker_distribution dist

.PHONY: soak
soak: $(VENV)/installed ## an hour of traffic with small faults; does anything grow? make soak [ARGS='--minutes 5']
	@$(BIN)/python -m tests.faults.soak $(ARGS)

.PHONY: test-scale
test-scale: $(VENV)/installed ## a million due messages, two hundred thousand pending, fifty queues: minutes, figures printed
	@$(BIN)/python -m pytest -n 0 -q -s --scale -m scale tests/broker $(ARGS)

.PHONY: test-servers
test-servers: $(VENV)/installed ## newer Redis, Valkey and Redict, as Debian's archive has them, some 20 minutes: make test-servers [ARGS=tests/broker]
	@$(BIN)/python -m tests.servers build/servers $(ARGS)

.PHONY: check
check: $(VENV)/installed ## ruff, mypy --strict, the walls between packages
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: bench
bench: $(VENV)/installed ## measure side by side, hours: make bench [ARGS='queue --rounds 3'] [ARGS=density]
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: up-local
up-local: $(VENV)/installed ## what docker-compose.local.yml starts, without Docker; Ctrl-C drains: make up-local [ARGS=--any-ports]
	@$(BIN)/python -m deploy.local_stack $(ARGS)

.PHONY: test-upgrade
test-upgrade: $(VENV)/installed ## workers of another commit beside ours, exchanged under load: make test-upgrade OLD=fa88d10
	@SPLOOT_OLD=$(OLD) $(BIN)/python -m pytest -n 0 -q --deploy tests/deploy/test_upgrades.py

.PHONY: chart
chart: $(VENV)/deploy-installed ## render the chart with Helm 3 and 4, and ask Kubernetes 1.27 to 1.37 and the operators
	@$(BIN)/python -m pytest -n 2 -q --deploy tests/charts $(ARGS)

.PHONY: test-redis
test-redis: $(VENV)/deploy-installed ## users, TLS, sentinels through a failover, a cluster, locks, compose file: make test-redis
	@$(BIN)/python -m pytest -n 2 -q --deploy tests/deploy $(ARGS)

# redis >= 6.4, < 9 in setup.cfg is redis==6.4.* here
OLDEST := sed -nE 's/^ +(dramatiq|redis) >= ([0-9.]+),.*/\1==\2.*/p' setup.cfg | sort -u
.PHONY: test-oldest
test-oldest: $(VENV)/installed ## the broker with the oldest Dramatiq and redis-py that may be installed: make test-oldest [ARGS=-x]
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target build/oldest $$($(OLDEST))
	@PYTHONPATH=build/oldest $(BIN)/python -m pytest -n 2 --dist loadgroup tests/broker $(ARGS)

.PHONY: chart-files
chart-files: $(VENV)/installed ## copy rules and dashboard into the chart, after they were changed
	@$(BIN)/python -m deploy.chart_files

.PHONY: lock
lock: $(VENV)/deploy-installed ## pin what the image installs, by hash: make lock [ARGS=--upgrade]
	@$(BIN)/python -m deploy.lock $(ARGS)

.PHONY: image
image: $(VENV)/deploy-installed ## build the image with buildah, and run jobs in it; needs root
	@$(BIN)/hadolint Dockerfile
	@$(BIN)/python -m deploy.image build/image
	@test ! -d build/image || SPLOOT_IMAGE=build/image $(BIN)/python -m pytest -n 0 -q tests/image

.PHONY: sbom
sbom: $(VENV)/deploy-installed ## what the image consists of, as CycloneDX: build/sbom.cdx.json
	@mkdir -p build
	@$(BIN)/cyclonedx-py requirements requirements.lock --output-reproducible --of JSON -o build/sbom.cdx.json
	@echo build/sbom.cdx.json

.PHONY: licences
licences: $(VENV)/deploy-installed ## list the licences of what the image installs: docs/licences.md
	@$(BIN)/python -m deploy.licences

.PHONY: audit
audit: sbom ## lock, licences, bill of materials, known vulnerabilities of what the image installs
	@$(BIN)/python -m deploy.lock --check
	@$(BIN)/python -m deploy.licences --check
	@$(BIN)/python -m deploy.audit || test $$? -eq 75

.PHONY: promises
promises: $(VENV)/installed ## 10,000 random events against the oracle of people's corrections, minutes: make promises [ARGS='20000 7']
	@$(BIN)/python -m tests.sploot_cluster.days $(ARGS)

.PHONY: ops-build
ops-build: $(VENV)/installed ## write rules, dashboard and tables from ops/thresholds.yaml
	@$(BIN)/python -m ops.build

.PHONY: ops-picture
ops-picture: $(VENV)/installed ## draw the dashboard from a real Prometheus: make ops-picture [ARGS=FILE.png]
	@$(BIN)/python -m ops.picture $(ARGS)

.PHONY: ops-verify
ops-verify: $(VENV)/installed ## see alerts fire and panels draw, on a real Prometheus, Alertmanager and Redis
	@$(BIN)/python -m ops.build --check
	@$(BIN)/python -m pytest tests/ops --ops -n 4 --dist loadgroup $(ARGS)

.PHONY: format
format: $(VENV)/installed ## let ruff write the files as it likes them
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format --quiet .

.PHONY: clean
clean: ## remove what was built here, the environment included
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-output
