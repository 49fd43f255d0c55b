# Everything starts from a checkout and Python 3.11 or later; nothing has to be set up first.
#   make PYTHON=/path/to/python3.12 test    another interpreter
#   make WORKERS=1 PYTEST_ARGS="-k wait" test

SHELL := /bin/sh
.DEFAULT_GOAL := help

WORKERS ?= 3
PYTEST_ARGS ?=
SECONDS ?= 60
SEED ?=

DEV := .venv
DEV_STAMP := $(DEV)/.stamp
DEMO := build/demo
DEMO_STAMP := $(DEMO)/.stamp
LOCK := build/lock
LOCKFILE := requirements-dev.lock
SHIPPED := $(shell find maintlock exporter wrappers grafana -type f ! -path '*/__pycache__/*' ! -path '*/node_modules/*')

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Print the first interpreter that is new enough and can make virtual environments, or say what is missing.
define find_python
old=; bare=; \
for candidate in $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python3.14 python); do \
  "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { old="$$old $$candidate"; continue; }; \
  "$$candidate" -c 'import ensurepip, venv' 2>/dev/null || { bare=$$candidate; continue; }; \
  found=$$candidate; break; \
done; \
if [ -z "$$found" ] && [ -n "$$bare" ]; then \
  echo "make: $$bare cannot make virtual environments (no ensurepip). On Debian and Ubuntu:" >&2; \
  echo "  sudo apt-get install $$("$$bare" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" >&2; exit 1; \
elif [ -z "$$found" ]; then \
  echo "make: no Python 3.11 or later (tried:$$old). Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; \
fi
endef

.PHONY: help demo test check bench torture crashes lock clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(DEMO_STAMP) ## install the package and see it at work
	@PATH="$(CURDIR)/$(DEMO)/bin:$$PATH" wrappers/demo.sh

# Thousands of short programs are started: without bytecode (PYTHONDONTWRITEBYTECODE) each would compile us anew.
test: $(DEV_STAMP) ## run the tests
	@$(DEV)/bin/python -m compileall -q maintlock exporter
	$(DEV)/bin/python -m pytest -n $(WORKERS) --dist loadgroup -m "not torture" $(PYTEST_ARGS)

check: $(DEV_STAMP) ## lint, formatting, types, layers
	$(DEV)/bin/ruff check
	$(DEV)/bin/ruff format --check
	$(DEV)/bin/mypy
	$(DEV)/bin/lint-imports

bench: $(DEV_STAMP) ## measure against flock(1), filelock, fasteners and portalocker
	$(DEV)/bin/python -m tests.bench

torture: $(DEV_STAMP) ## kill and race at random: make torture SECONDS=600 SEED=1
	$(DEV)/bin/python -m tests.torture --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

crashes: $(DEV_STAMP) ## kill at every system call, and drive the model for long
	$(DEV)/bin/python -m pytest -m torture $(PYTEST_ARGS)

lock: ## renew the pinned versions of what development and CI use
	@$(find_python); "$$found" -m venv --clear $(LOCK)
	@$(LOCK)/bin/python -m pip install --quiet uv
	$(LOCK)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --group dev --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --annotation-style line --custom-compile-command "make lock" \
	  --output-file $(LOCKFILE) pyproject.toml

clean: ## remove everything that make has made
	rm -rf $(DEV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find maintlock exporter tests wrappers -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEV_STAMP): pyproject.toml $(LOCKFILE)
	@$(find_python); echo "make: setting up $(DEV) with $$found"; "$$found" -m venv --clear $(DEV)
	@$(DEV)/bin/python -m pip install --quiet --require-hashes --requirement $(LOCKFILE)
	@$(DEV)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Installed as anybody would install it: not editable, no tools for development.
$(DEMO_STAMP): pyproject.toml $(SHIPPED)
	@$(find_python); echo "make: installing maintlock into $(DEMO) with $$found"; "$$found" -m venv --clear $(DEMO)
	@$(DEMO)/bin/python -m pip install --quiet .
	@touch $@
