# `make demo` and `make test` set themselves up: a virtual environment in .venv with the pinned versions.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.installed

.PHONY: demo test lint types layers unit format reproduce-wca reproduce-fashion-mnist reproduce-certified reproduce-conversion reproduce-spiking reproduce-weights reproduce-events fuzz-bounds bench clean

demo: $(SETUP)
	$(BIN)/stalwart demo --out demo

test: lint types layers unit

$(SETUP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(SETUP)
	$(BIN)/mypy

layers: $(SETUP)
	$(BIN)/lint-imports

unit: $(SETUP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

format: $(SETUP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Long reproductions: results are recorded in docs/results.md.
reproduce-wca: $(SETUP)
	$(BIN)/python reproductions/wca.py --out runs/wca-study

reproduce-fashion-mnist: $(SETUP)
	bash reproductions/fashion_mnist.sh runs

reproduce-certified: $(SETUP)
	$(BIN)/python reproductions/certified.py --out runs/certified

reproduce-conversion: $(SETUP)
	$(BIN)/python reproductions/conversion.py --out runs/conversion

reproduce-spiking: $(SETUP)
	$(BIN)/python reproductions/spiking.py --out runs/spiking
	$(BIN)/python reproductions/spiking_sweeps.py --out runs/spiking-sweeps
	$(BIN)/python reproductions/spiking_transfer.py --out runs/spiking-transfer

reproduce-weights: $(SETUP)
	$(BIN)/python reproductions/weights.py --out runs/weights --families cnn rlif
	$(BIN)/python reproductions/weights.py --out runs/weights --families paper --seeds 0

reproduce-events: $(SETUP)
	$(BIN)/python reproductions/event_attacks.py --out runs/event-attacks

# Ten thousand random networks, for hours; any point outside its bounds fails.
fuzz-bounds: $(SETUP)
	STALWART_EXAMPLES=10000 $(BIN)/python -m pytest -n 2 tests/bounds/test_random_networks.py

bench: $(SETUP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt 'foolbox>=3.3.4'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'torchattacks>=3.5.1'
	$(BIN)/python benchmarks/attacks.py

clean:
	rm -rf .venv demo
