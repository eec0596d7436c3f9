# Uses the virtual environment that the README's test command makes.
BIN := .venv/bin

.PHONY: check test lint fix docs

check: lint test

test:
	$(BIN)/pytest

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix:
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs:
	$(BIN)/python docs/make_commands.py
