# make demo   the whole loop on this machine, real parts, about ten minutes
# make test   every test that needs no GPU

PYTHON ?= python3
export PYTHON
BIN := .venv/bin

.PHONY: demo test check setup toy clean

demo: toy
	$(BIN)/python -m trainer.main --config configs/toy.yaml $(ARGS)

test: toy
	$(BIN)/python -m pytest $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_import_doors.py

setup:
	@bash deploy/setup.sh

toy: setup
	@$(BIN)/python -m deploy.toy.make

clean:
	rm -rf .cache runs
