# `make demo` and `make test` work on a fresh machine with Python >= 3.11, git and make; both reuse the environment.
PYTHON ?= python3
VENV ?= .venv
# Changes with the declared dependencies or the checkout, so an environment is set up again exactly when it must be.
STAMP := $(VENV)/installed-$(shell cat setup.py | cksum | cut -d' ' -f1)-$(shell pwd | cksum | cut -d' ' -f1)

.PHONY: demo test test-slow test-gpu gpu drill lint docs screenshots clean

demo: $(STAMP)
	$(VENV)/bin/cae demo --out demo-result

test: $(STAMP)
	$(VENV)/bin/python -m pytest

test-slow: $(STAMP)
	$(VENV)/bin/python -m pytest -m slow

test-gpu: $(STAMP)
	$(VENV)/bin/python -m pytest -m "gpu or not slow" tests/test_kernels_*.py

# Installs nothing: for a machine with a GPU and torch, Triton and little else. Eight minutes; see benchmarks/gpu.py.
gpu:
	$(PYTHON) benchmarks/gpu.py

# Hours; writes the table in tests/README.md.
drill: $(STAMP)
	$(VENV)/bin/python -m pytest -m drill tests/drills
	$(VENV)/bin/python tests/drills/record.py

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(STAMP)
	$(VENV)/bin/mkdocs build --strict

screenshots: $(STAMP)
	$(VENV)/bin/python benchmarks/screenshots.py

$(STAMP):
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --editable '.[lite,dev]'
	rm -f $(VENV)/installed-*
	touch $@

clean:
	rm -rf .venv site build dist demo-result *.egg-info
