# make demo   the main job on the embedded default: search, train, compare
# make test   every test but the slow ones;  make test-slow  the fault and soak runs
# make check  linters, types, import rules
.PHONY: setup demo test test-slow check format clean
BIN := .venv/bin

setup:
	@tools/setup.sh

demo: setup
	@$(BIN)/treeopo demo

test: setup
	@$(BIN)/python -m pytest

test-slow: setup
	@$(BIN)/python -m pytest -m slow

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf .venv demo
