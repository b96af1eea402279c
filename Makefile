# Tollgate on a machine that has Python 3.11 or newer and make. `make help` says what there is.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help run demo stripe test check bench soak mutants clean

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PY := .venv/bin/python

# A list of packages is installed again only when it differs from the one installed last.
define install
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: PYTHON=/path/to/python3.11 make ..." >&2; exit 1; }
	@test -x .venv/bin/pip || { echo "Making .venv"; $(PYTHON) -m venv .venv; } || { echo "On Debian and Ubuntu: apt install python3-venv" >&2; rm -rf .venv; exit 1; }
	@cmp -s $(1) .venv/$(1).installed || { echo "Installing $(1)"; \
		$(PY) -m pip install -qq --disable-pip-version-check --no-input -r $(1) && cp $(1) .venv/$(1).installed; }
endef

help:  ## What can be done here
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile
	@echo "  Where it listens: PORT=8000. Own servers: DATABASE_URL and REDIS_URL. All variables: .env.example"

run:  ## Everything, at http://localhost:8000, with demo accounts and a workload; Ctrl-C stops it
	$(call install,requirements.txt)
	@exec $(PY) manage.py up

demo:  ## Replay a workload through the API and report: make demo TRACE=file.csv
	$(call install,requirements.txt)
	@exec $(PY) manage.py up --demo $(if $(TRACE),--trace "$(TRACE)")

stripe:  ## The local Stripe double alone: make stripe STRIPE_PORT=12111
	$(call install,requirements.txt)
	@exec $(PY) -m stripe_double --port $(or $(STRIPE_PORT),12111)

test:  ## The test suite, on servers of its own
	$(call install,requirements.txt)
	$(call install,requirements-dev.txt)
	@exec $(PY) -m pytest -n 2

check:  ## Style, types, imports, migrations, deployment settings, documents, dj-stripe's schema
	$(call install,requirements.txt)
	$(call install,requirements-dev.txt)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy .
	.venv/bin/lint-imports
	DJANGO_SETTINGS_MODULE=config.settings.test $(PY) manage.py makemigrations --check --dry-run
	$(PY) -m pytest -q tests/test_docs.py tests/test_architecture.py tests/test_settings.py
	$(PY) -m config.djstripe_schema

bench:  ## The measurements of docs/performance.md, about ten minutes: make bench SECONDS=2 SCALE=6
	$(call install,requirements.txt)
	$(call install,requirements-bench.txt)
	@SECONDS=$(or $(SECONDS),2) SCALE=$(or $(SCALE),6) $(PY) -m benchmarks

soak:  ## Clients at work while all beneath them is killed, all that Stripe may send, charges after price edits: make soak SECONDS=600 DELIVERIES=100000 CHARGES=10000 SEED=1
	$(call install,requirements.txt)
	$(call install,requirements-dev.txt)
	@$(PY) -m tests.torture --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))
	@$(PY) -m tests.webhooks --deliveries $(or $(DELIVERIES),100000) $(if $(SEED),--seed $(SEED))
	@CHARGES=$(or $(CHARGES),10000) $(PY) -m pytest tests/test_repriced.py -q

mutants:  ## Plant known bugs in a copy, one at a time; a test must notice each: make mutants ONLY="burn"
	$(call install,requirements.txt)
	$(call install,requirements-dev.txt)
	@exec $(PY) -m tests.mutants $(ONLY)

clean:  ## Stop the embedded servers; delete their data and everything that was made here
	@test ! -x $(PY) || for name in dev test bench soak mutants; do $(PY) -m config.embedded remove --name $$name; done
	rm -rf .venv var staticfiles .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
