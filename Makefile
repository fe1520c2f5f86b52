# make demo   the whole loop on this machine, real parts, about ten minutes
# make test   every test that needs no GPU
# make soak   a million fuzzed outputs through the readers: COUNT and SEED as variables
# make chaos  any process of a run killed again and again, and nothing paid for twice; then a learner, its runs resumed to
#             the same weights; then replicas killed and frozen under runs that go on, every second one inside a
#             transfer of weights: KILLS (of each) and SEED as variables
# make gaming a run on a judge that can be gamed, which an honest second judge stops: some five minutes

PYTHON ?= python3
export PYTHON
BIN := .venv/bin

COUNT ?= 1000000
KILLS ?= 20
SEED ?= 1

.PHONY: demo test soak chaos gaming check setup toy clean

demo: toy
	$(BIN)/python -m trainer.main --config configs/toy.yaml $(ARGS)

test: toy
	$(BIN)/python -m pytest $(ARGS)

soak: setup
	$(BIN)/python -m tests.soak.readers --count $(COUNT) --seed $(SEED)

chaos: toy
	$(BIN)/python -m tests.chaos.any_kills --kills $(KILLS) --seed $(SEED)
	$(BIN)/python -m tests.chaos.learner_kills --kills $(KILLS) --seed $(SEED)
	$(BIN)/python -m tests.chaos.fleet_kills --kills $(KILLS) --seed $(SEED)

gaming: toy
	$(BIN)/python -m pytest -m long tests/e2e/test_gamed_run.py

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
