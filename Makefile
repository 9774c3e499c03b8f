# `make demo` and `make test` each work on a fresh machine: they set themselves up.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test check lint soak install schema clean

demo: $(STAMP)
	$(BIN)/dpstream run examples/methane/campaign.yaml

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile tests

check: lint
	$(BIN)/python -m pytest -q -n 2 tests/unit tests/contract

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: $(STAMP)
	DPSTREAM_SOAK=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests

schema: $(STAMP)
	$(BIN)/python -c "from shared.codec import message_schema; print(message_schema(), end='')" > docs/messages.schema.json
	$(BIN)/python -c "from shared.asyncapi import document; print(document(), end='')" > docs/asyncapi.json

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
