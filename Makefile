# make setup | demo | test | browser | fuzz | check | format | golden | docs
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test browser fuzz check format golden docs
setup: $(VENV)/.ready

# torch comes first and pinned: an unpinned one brings several GB of CUDA.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/phi-edge demo

# A worker more than there are cores, since many tests wait for a device; four at most: each takes 1 to 3 GB. A worker
# takes a whole file, whose fixtures are then made once (`loadgroup` takes tests one by one with this pytest), in the
# order of tests/conftest.py.
test: setup
	$(BIN)/python -m pytest -n $$(( $$(nproc) < 3 ? $$(nproc) + 1 : 4 )) --dist loadfile --no-loadscope-reorder

# What takes too long for a test: a real model's twenty answers in a browser whose graphics adapter is software. CI asks
# for one token of each.
TOKENS := 8
browser: setup
	$(BIN)/python -m ci.gpu.browser_check --tokens $(TOKENS)

# SECONDS for each target; TARGETS="manifest agent_lines" are some of them. What is found is in build/fuzz.
SECONDS := 60
fuzz: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	$(BIN)/python ci/fuzz/fuzz.py --seconds $(SECONDS) $(TARGETS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python ci/check_wheel.py

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

golden: setup
	$(BIN)/python -m pytest --rewrite-golden tests

docs: setup
	$(BIN)/python ci/cli_page.py
