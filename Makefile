# Two commands matter: `make nano` and `make test`. Both make .venv first if it is missing.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3,$(if $(shell $(name) --version 2>/dev/null),$(name))))
UV_VERSION := $(shell sed -n 's/^uv==//p' constraints.txt)
BIN := .venv/bin
INSTALLED := .venv/.installed
# Where Python may write none itself, every process would compile the sources of torch and Composer anew.
BYTECODE := $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode)

.PHONY: nano reference test test-long test-gpu bench lint format constraints clean

# `make nano RUN=mine OVERRIDES='seed=3 …'` makes another.
RUN := nano
nano: $(INSTALLED)
	$(BIN)/python data_prep yamls/data/nano.yaml
	$(BIN)/composer -n 2 launch yamls/main/nano.yaml run_name=$(RUN) $(OVERRIDES)
	$(BIN)/rotary-foundry export runs/$(RUN) runs/$(RUN)/export
	$(BIN)/rotary-foundry summary runs/$(RUN)
	$(BIN)/rotary-foundry report runs/$(RUN)

# Five seeds of nano, which its report lays behind a run. 30 minutes on two cores.
SEEDS := 17 18 19 20 21
reference:
	for seed in $(SEEDS); do $(MAKE) nano RUN=nano-$$seed OVERRIDES=seed=$$seed || exit; done
	$(BIN)/rotary-foundry reference $(SEEDS:%=runs/nano-%) --out src/rotary_foundry/reporting/references/nano.json

# Whole runs are two processes each, and come one after the other; of the others two files are run at a time.
WHOLE_RUNS := tests/training tests/launch
test: lint
	$(BIN)/pytest -n 2 --dist loadfile $(WHOLE_RUNS:%=--ignore=%)
	$(BIN)/pytest $(WHOLE_RUNS)

test-long: $(INSTALLED)
	$(BIN)/pytest -m long

# Without a GPU every one of these tests fails and says so; those of a package that is not installed are skipped, with the reason.
test-gpu: $(INSTALLED)
	$(BIN)/pytest -m gpu -rs

# Ours beside its peers, on CPU: an hour and a half on two cores. Writes benchmarks/results.md.
bench: $(INSTALLED)
	$(BIN)/python benchmarks

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Resolve all pins afresh, for every extra and both Python versions.
constraints:
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-annotate --no-header \
		--override overrides.txt --upgrade --output-file constraints.txt

$(INSTALLED): pyproject.toml constraints.txt overrides.txt
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 13) else "Python 3.11 or 3.12 is needed, found " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --python $(BIN)/python $(BYTECODE) --constraint constraints.txt --override overrides.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv data runs
