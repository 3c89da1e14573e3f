# Every target sets up what it needs in .venv and works from a directory with spaces in its name.
PYTHON ?= python3
RUN := .venv/bin/python -m
PIP := $(RUN) pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test slow check docs clean

demo: .venv/.demo
	$(RUN) lessen demo --out out/demo

test: .venv/.test
	OMP_NUM_THREADS=1 $(RUN) pytest -n 2 --dist worksteal

slow: .venv/.test
	OMP_NUM_THREADS=2 $(RUN) pytest -m slow

check: .venv/.test
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

docs: .venv/.test
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict --quiet

.venv/.demo: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("lessen needs Python 3.10 or newer, found " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) -e '.[baselines]'
	touch .venv/.demo

.venv/.test: .venv/.demo
	$(PIP) -e '.[test]'
	touch .venv/.test

clean:
	rm -rf .venv out site build dist
