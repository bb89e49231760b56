PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo check test torture gpu docs bench study
.DELETE_ON_ERROR:

# pip would compile every module of every library; the first import of a module does so for what is used, and keeps it.
unexport PYTHONDONTWRITEBYTECODE

setup: .venv/ready            ## virtual environment; torch first, so that pip keeps the CPU build

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	touch $@

demo: setup                   ## the main job: fine-tune an embedded LM, audit it, write demo/report.html
	$(BIN)/ltmia demo -o demo

check: setup                  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check                   ## check + the suite, two files at a time
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow and not gpu'

torture: setup                ## what is too heavy for every day: slow tests, Ray, 200 interruptions, fuzzers, a soak
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dp,presidio,ray]' 'bitsandbytes<1' 'triton<4' 'pip-audit<3'
	$(BIN)/pip-audit -r constraints.txt --no-deps --disable-pip
	$(BIN)/pytest -m 'slow and not gpu' --timeout 3000
	$(BIN)/pytest -m 'not slow and not gpu' -k 'ray or dp or presidio or quantised or triton' --timeout 3000
	$(BIN)/python scripts/torture.py .cache/torture --kills 200
	$(BIN)/python scripts/fuzz.py all --cases 10000
	$(BIN)/python scripts/soak.py .cache/soak --texts 100000
	$(BIN)/python scripts/soak_ray.py .cache/soak-ray --texts 100000

gpu:                          ## tests that need an accelerator; install torch for it into .venv first
	TRITON_INTERPRET=0 $(BIN)/pytest -m gpu

docs: setup                   ## the documentation site, written into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: setup                  ## speed of extraction on this machine
	$(BIN)/ltmia bench extract

LAB ?= lab
study: setup                  ## the tables of docs/study.md, from the stores of the lab in LAB (over half an hour)
	$(BIN)/python scripts/study.py $(LAB) .cache/study
