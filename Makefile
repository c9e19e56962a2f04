# make demo and make test need only Python 3.11 or 3.12, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

.PHONY: demo test install format lint types layers unit notebooks check clean

demo: install
	$(BIN)/medqdm enhance tests/data/demo-series -o $(DEMO) --overwrite
	@echo "DICOM series: $(DEMO)/IM*.dcm"
	@echo "side by side: $(DEMO)/comparison.png"

test: check

check: lint types layers unit notebooks

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 12), 'medqdm needs Python 3.11 or 3.12: make PYTHON=python3.11'"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

layers: install
	$(BIN)/lint-imports

unit: install
	$(BIN)/python -m pytest -q

notebooks: install
	$(BIN)/python -m pytest -q --nbmake --nbmake-timeout=600 notebooks

clean:
	rm -rf $(VENV) $(DEMO)
