# GNU make 3.81 is enough (macOS has it). Everything happens in .venv; nothing is installed
# system-wide. `make` alone lists the targets.

.DEFAULT_GOAL := help
.PHONY: help setup run test check fast protos vendor docs bench demo test-compose runtime
SHELL := /bin/sh
BIN := .venv/bin

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv with everything for development
	@scripts/venv dev

# Not listed: what `run` and `demo` need, which a complete .venv has too.
runtime:
	@scripts/venv runtime

run: runtime ## start everything on this machine (`everstate dev`), until Ctrl-C; ARGS="…" for options
	@$(BIN)/everstate dev $(ARGS) || { code=$$?; [ $$code -eq 130 ] || exit $$code; }

test: setup ## run all tests that this machine can run; the last line names what was left out
	@scripts/test

check: setup ## formatting, lint, types, import rules, dependencies, spelling, generated code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/codespell
	scripts/protos --check

fast: setup ## the quick tests: unit and house
	$(BIN)/python -m pytest tests/unit tests/house

protos: setup ## regenerate the code of protocols/
	scripts/protos

vendor: ## fetch the console's vendored files
	@echo "nothing to vendor yet: the console arrives later"

docs: setup ## build the documentation into docs/_build/html
	$(BIN)/sphinx-build -W docs docs/_build/html

bench: setup ## run the benchmarks; ONLY=name runs one
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))

demo: runtime ## show it all once, in a temporary folder: start, import the sample, look, verify, stop
	@$(BIN)/python -P scripts/demo

test-compose: setup ## run docker-compose.yml for real; needs a container engine
	scripts/test-compose
