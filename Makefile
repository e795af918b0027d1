# Two commands matter to a newcomer: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

# Where it is set, each of the hundreds of processes that tests start would compile all its modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | column -t -s "$$(printf '\t')"

INSTALL := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check

$(BIN)/python:
	@$(PYTHON) deploy/machine.py
	@$(PYTHON) -m venv $(VENV)

# The demo needs no test tools: they are a third of what the tests need.
$(VENV)/demo-installed: setup.cfg setup.py pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV) (once; downloads 110 MB and takes 500 MB: numpy, faiss, scikit-learn and others)"
	@$(INSTALL) --editable '.[all]'
	@touch $@

$(VENV)/installed: setup.cfg setup.py pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV) (once; about 700 MB: numpy, faiss, scikit-learn and others)"
	@$(INSTALL) --editable '.[dev]'
	@touch $(VENV)/demo-installed $@

.PHONY: install
install: $(VENV)/installed ## create .venv and install everything

$(VENV)/deploy-installed: $(VENV)/installed
	@echo "installing the checks of images and charts into $(VENV) (once; about 150 MB)"
	@$(INSTALL) --editable '.[deploy]'
	@touch $@

.PHONY: demo
demo: $(VENV)/demo-installed ## run the whole system on real pictures: make demo [ARGS=--keep]
	@$(BIN)/sploot-cluster demo $(ARGS)

.PHONY: test
test: $(VENV)/installed ## run all tests on a real redis-server: make test [ARGS='-k merge']
	@$(BIN)/python -m pytest -n 4 --dist loadgroup $(ARGS)

.PHONY: test-quick
test-quick: $(VENV)/installed ## run the fast tests of broker and engine on the newest server: make test-quick [ARGS='-k merge']
	@$(BIN)/python -m pytest -n 4 --dist worksteal -q --newest -m 'not slow' tests/broker tests/sploot_cluster --ignore=tests/sploot_cluster/api $(ARGS)

.PHONY: test-faults
test-faults: $(VENV)/installed ## inject faults for more than an hour and check that nothing is lost: make test-faults [ARGS=--short]
	@$(BIN)/python -m tests.faults $(ARGS)

.PHONY: broker-wheel
broker-wheel: $(VENV)/installed ## build the broker as a separate distribution in dist/
	@$(BIN)/python -m deploy.broker_distribution dist

.PHONY: client-wheel
client-wheel: $(VENV)/installed ## build the thin client as a separate distribution in dist/
	@$(BIN)/python -m deploy.client_distribution dist

.PHONY: dist
dist: $(VENV)/deploy-installed ## build and check the wheels and source distributions of all three projects in dist/
	@$(BIN)/python -m deploy.distributions dist

.PHONY: soak
soak: $(VENV)/installed ## run an hour of traffic with small faults and check that nothing grows: make soak [ARGS='--minutes 5']
	@$(BIN)/python -m tests.faults.soak $(ARGS)

.PHONY: test-model
test-model: $(VENV)/installed ## let random events happen to a queue, 300 long examples, minutes: make test-model [EXAMPLES=1000]
	@BROKER_MODEL_EXAMPLES=$(or $(EXAMPLES),300) $(BIN)/python -m pytest -n 0 -q -o timeout=3600 tests/broker/test_model.py

.PHONY: test-scale
test-scale: $(VENV)/installed ## test a million due messages, 200,000 pending entries, fifty queues, a million pets, big pets; takes minutes and prints figures
	@$(BIN)/python -m pytest -n 0 -q -s --scale -m scale tests/broker tests/sploot_cluster/store $(ARGS)

.PHONY: test-bench
test-bench: $(VENV)/installed ## run the benchmarks of queue and pipeline for seconds, to check that they work
	@$(BIN)/python -m pytest -n 0 -q --bench -m bench tests/benchmarks $(ARGS)

.PHONY: test-servers
test-servers: $(VENV)/installed ## test newer Redis, Valkey and Redict from Debian's archive, about 20 minutes: make test-servers [ARGS=tests/broker]
	@$(BIN)/python -m tests.servers build/servers $(ARGS)

.PHONY: test-pythons
test-pythons: $(VENV)/deploy-installed ## run the quick tests on Python 3.12, 3.13 and 3.14: make test-pythons [ARGS=3.13]
	@$(BIN)/python -m tests.pythons $(ARGS)

.PHONY: platforms
platforms: $(VENV)/deploy-installed ## check that demo and tests can be installed on every platform and Python
	@$(BIN)/python -m deploy.platforms

.PHONY: check
check: $(VENV)/installed ## run ruff, mypy --strict and the import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: bench
bench: $(VENV)/installed ## run the benchmarks, which takes hours: make bench [ARGS='queue --rounds 3'] [ARGS=density]
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: up-local
up-local: $(VENV)/installed ## start the stack of docker-compose.local.yml without Docker; Ctrl-C drains: make up-local [ARGS=--any-ports]
	@$(BIN)/python -m deploy.local_stack $(ARGS)

.PHONY: test-upgrade
test-upgrade: $(VENV)/installed ## replace workers of another commit by ours under load: make test-upgrade OLD=fa88d10
	@SPLOOT_OLD=$(OLD) $(BIN)/python -m pytest -n 0 -q --deploy tests/deploy/test_upgrades.py

.PHONY: chart
chart: $(VENV)/deploy-installed ## validate the chart with Helm 3 and 4 for Kubernetes 1.27 to 1.37 and the operators, and run kubectl on its objects
	@$(BIN)/python -m pytest -n 2 -q --deploy tests/charts $(ARGS)

.PHONY: test-redis
test-redis: $(VENV)/deploy-installed ## test Redis users, TLS, sentinels, a cluster, lock files, the compose file, extras, distributions and the OpenAPI document
	@$(BIN)/python -m pytest -n 2 -q --deploy tests/deploy $(ARGS)

build/s3/installed: $(VENV)/deploy-installed
	@$(BIN)/uv venv -q --clear --python $(BIN)/python build/s3
	@$(BIN)/uv pip install -q --python build/s3 'moto[s3,server] == 5.2.5'
	@touch $@

.PHONY: test-s3
test-s3: build/s3/installed ## test the cold store on an S3 server, which is installed in an environment of its own
	@S3_SERVER=build/s3/bin/moto_server $(BIN)/python -m pytest -n 0 -q --s3 tests/sploot_cluster/store/cold/test_vectors.py $(ARGS)

.PHONY: test-oldest
test-oldest: $(VENV)/deploy-installed ## test the lowest stated version of every dependency: make test-oldest [ARGS='-n 2 tests/broker']
	@$(BIN)/python -m tests.oldest $(ARGS)

.PHONY: chart-files
chart-files: $(VENV)/installed ## write the README of the chart and the names of clustering settings in its schema
	@$(BIN)/python -m deploy.chart_files

.PHONY: reference
reference: $(VENV)/installed ## generate the pages of docs/reference from the code
	@$(BIN)/python -m deploy.reference

.PHONY: pictures
pictures: $(VENV)/installed ## draw the pictures of the README; needs Chromium and Prometheus
	@$(BIN)/python -m deploy.pictures

.PHONY: screenshots
screenshots: $(VENV)/installed ## photograph every page of the console into build/screenshots; needs Chromium
	@$(BIN)/python -m deploy.screenshots

.PHONY: lock
lock: $(VENV)/deploy-installed ## pin the packages of the image by hash: make lock [ARGS=--upgrade]
	@$(BIN)/python -m deploy.lock $(ARGS)

.PHONY: image
image: $(VENV)/deploy-installed ## build the image with buildah and run jobs in it; needs root
	@$(BIN)/hadolint Dockerfile
	@$(BIN)/python -m deploy.image build/image
	@test ! -d build/image || SPLOOT_IMAGE=build/image $(BIN)/python -m pytest -n 0 -q tests/image

.PHONY: sbom
sbom: $(VENV)/deploy-installed ## write the bill of materials of the image (CycloneDX) to build/sbom.cdx.json
	@mkdir -p build
	@$(BIN)/cyclonedx-py requirements requirements.lock --output-reproducible --of JSON -o build/sbom.cdx.json
	@echo build/sbom.cdx.json

.PHONY: licences
licences: $(VENV)/deploy-installed ## list the licences of the packages in the image in docs/licences.md
	@$(BIN)/python -m deploy.licences

.PHONY: audit
audit: sbom ## check lock files and licences, and look for known vulnerabilities in the image's packages
	@$(BIN)/python -m deploy.lock --check
	@$(BIN)/python -m deploy.licences --check
	@$(BIN)/python -m deploy.audit || test $$? -eq 75

.PHONY: promises
promises: $(VENV)/installed ## check 10,000 random events against the oracle of corrections, minutes: make promises [ARGS='20000 7']
	@$(BIN)/python -m tests.sploot_cluster.days $(ARGS)

.PHONY: ops-build
ops-build: $(VENV)/installed ## write the JSON of the dashboard from its panels and the levels of the alerts
	@$(BIN)/python -m ops.dashboard

.PHONY: ops-picture
ops-picture: $(VENV)/installed ## draw the dashboard from a real Prometheus: make ops-picture [ARGS=FILE.png]
	@$(BIN)/python -m tests.ops.picture $(ARGS)

.PHONY: ops-verify
ops-verify: $(VENV)/installed ## test alerts and panels on a real Prometheus, Alertmanager and Redis
	@$(BIN)/python -m ops.dashboard --check
	@$(BIN)/python -m pytest tests/ops --ops -n 4 --dist loadgroup $(ARGS)

.PHONY: incidents
incidents: $(VENV)/installed ## cause each incident in a demo, follow the runbook to its end and print pages, messages and times
	@mkdir -p build
	@printf '%s\n' '| exercise | pages | Slack messages | first after | resolved after | speed |' '|---|---|---|---|---|---|' > build/incidents.md
	@INCIDENTS_TABLE=build/incidents.md $(BIN)/python -m pytest -n 0 -q --ops tests/ops/incidents.py $(ARGS)
	@cat build/incidents.md

.PHONY: format
format: $(VENV)/installed ## fix and format all files with ruff
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format --quiet .

.PHONY: clean
clean: ## remove everything that was built here, including .venv
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-output
