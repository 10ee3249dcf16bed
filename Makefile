# The commands of this repository. `make demo` and `make test` need nothing but root and Debian.
.DEFAULT_GOAL := help
.PHONY: help setup setup-test image demo test test-tiers check soak bench clean
CONNECTIONS ?= 1000
SECONDS ?= 1800
SEED ?= 1
PYTHON := .venv/bin/python
TIERS ?= prepared template cold warm
WORKERS := $(shell echo $$(( $$(nproc) + 1 )))

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

setup: ## install what the fabric needs on this machine; leaves .venv/bin/fabric
	@scripts/setup.sh run

setup-test: ## setup, and the applications the tests use
	@scripts/setup.sh test

image: setup ## rebuild the guest image if its inputs changed
	@$(PYTHON) images/build.py

demo: setup ## a connection across real guests, twice, with different needs
	@$(PYTHON) examples/demo.py

test: setup-test ## every test, on real guests too
	$(PYTHON) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not vm"
	$(PYTHON) -m pytest -m vm --durations=25

test-tiers: setup-test ## the claim, guests appearing in every way there is (TIERS="cold warm": in these)
	FABRIC_TEST_TIERS="$(TIERS)" $(PYTHON) -m pytest tests/vm/test_claim.py

check: ## lint, types, import law, unit tests: under a minute, no root
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	$(PYTHON) -m pytest -q -n auto tests/unit tests/sim tests/bench -m "not root and not vm and not exhaustive"

soak: setup-test ## CONNECTIONS=1000 in SECONDS=1800 while things are killed by chance (SEED=1): nothing hangs, nothing stays
	$(PYTHON) -m tests.vm.soak --connections $(CONNECTIONS) --seconds $(SECONDS) --seed $(SEED)

bench: setup-test ## tables; spawning, rates, memory, forwarding, blackouts, goodput beside references; hours
	$(PYTHON) -m tests.bench.tables
	.venv/bin/fabric bench spawn
	.venv/bin/fabric bench rate
	.venv/bin/fabric bench memory
	.venv/bin/fabric bench forward --profile
	scripts/fetch.sh bench
	.venv/bin/fabric bench blackout
	.venv/bin/fabric bench goodput

clean: ## remove what was built in this directory (not the image, not the packages)
	rm -rf .venv .peers .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
