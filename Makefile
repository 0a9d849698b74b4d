# Two commands matter: `make nano` and `make test`. Both make .venv first if it is missing.
PYTHON ?= $(firstword $(foreach name,3.11 3.12 3.13 3,$(if $(shell python$(name) --version 2>/dev/null),python$(name))))
UV_VERSION := $(shell sed -n 's/^uv==//p' constraints.txt)
BIN := .venv/bin
INSTALLED := .venv/.installed
OLDEST := .venv-oldest
# If Python may not write bytecode, every process would compile the sources of torch and Composer again, so it is written
# here. Errors are ignored, because some sources are templates.
COMPILED = $(if $(PYTHONDONTWRITEBYTECODE),$(1)/python -m compileall -qq -j 0 $(dir $(1))lib src || true)

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: help nano reference test test-long test-oldest test-gpu gpu-proof status bench docs lint format constraints clean

# `make nano RUN=mine OVERRIDES='seed=3 …'` trains another run.
RUN := nano
# A processor without bfloat16 instructions multiplies bfloat16 some fifty times slower than float32 (docs/recipe.md).
PRECISION := $(if $(shell grep -m1 bf16 /proc/cpuinfo),,precision=fp32)
nano: $(INSTALLED)  ## train a small ModernBERT from installed text, on two processes; 7 to 26 minutes
	$(BIN)/python data_prep yamls/data/nano.yaml
	$(BIN)/composer -n 2 launch yamls/main/nano.yaml run_name=$(RUN) $(PRECISION) $(OVERRIDES)
	$(BIN)/rotary-foundry export runs/$(RUN) runs/$(RUN)/export
	$(BIN)/rotary-foundry summary runs/$(RUN)
	$(BIN)/rotary-foundry report runs/$(RUN)

reference: $(INSTALLED)  ## after make nano: five seeds, which its report shows behind a run; half an hour on two cores
	$(BIN)/python benchmarks/record.py
	$(BIN)/rotary-foundry reference runs/record/$$(git rev-parse HEAD | cut -c1-9)/* --out src/rotary_foundry/reporting/references/nano.json

# One test process more than there are cores, because whole runs wait for each other and for clocks.
PYTEST = $(or $(2),$(BIN))/pytest -rs --durations=30 --result .ci/results/$(1).json
PARALLEL := -n $(shell expr $$(nproc) + 1) --dist loadfile --no-loadscope-reorder
test: lint  ## lint, and the tests that take minutes together
	$(call PYTEST,test) $(PARALLEL) tests

test-oldest: $(OLDEST)/.installed  ## models, optim, training and the GPU proof on the oldest torch that is supported
	$(call PYTEST,test-oldest,$(OLDEST)/bin) tests/models tests/optim tests/training tests/test_gpu_proof.py

test-long: $(INSTALLED)  ## whole runs and downloads; half an hour on two cores
	$(call PYTEST,test-long) $(PARALLEL) -m long tests

# Without a GPU each of these tests fails and says so. Tests that need a missing package are skipped, with the reason.
test-gpu: $(INSTALLED)  ## attention and training on a GPU
	$(call PYTEST,test-gpu) -m gpu tests

# `GPUS=8` uses all GPUs of a node.
GPUS := 1
gpu-proof: $(INSTALLED)  ## what a GPU does, beside what was predicted without one; no case begins after ten minutes
	$(BIN)/composer -n $(GPUS) benchmarks/gpu_proof.py $(SECTIONS)

status:  ## docs/status.md, from the results that the test commands leave
	$(PYTHON) .ci/status.py

bench: $(INSTALLED)  ## benchmarks/results.md: ours beside its peers, on CPU; an hour and a half on two cores
	$(BIN)/python benchmarks

# `REPOSITORY=` gives the address of the repository's page, to which links out of docs/ then lead.
docs: $(INSTALLED)  ## the documentation as a site, in site/index.html
	$(BIN)/python -m sphinx -q -n -W --keep-going docs site

lint: $(INSTALLED)  ## ruff, pyrefly, import-linter, hadolint, and the schema of GitHub's workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --output-format min-text --summary=none
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yaml

format: $(INSTALLED)  ## let ruff mend and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints:  ## resolve all pins afresh, for every extra and all Python versions
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-annotate --no-header \
		--override overrides.txt --upgrade --output-file constraints.txt

# Without overrides, the bounds of Composer and Streaming would force old releases of torch and transformers; pip has none.
INSTALL = $(BIN)/uv pip install --override overrides.txt

# The uv on PATH installs the pinned uv into .venv. If there is none, pip does, and ensurepip adds a missing pip.
$(INSTALLED): pyproject.toml constraints.txt overrides.txt
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11 to 3.13 is needed, found " + sys.version)'
	test -x $(BIN)/python || if command -v uv; then uv venv --python $(PYTHON) .venv; else $(PYTHON) -m venv .venv; fi
	if $(BIN)/uv --version | grep -w $(UV_VERSION); then true; \
	elif command -v uv; then uv pip install --python $(BIN)/python uv==$(UV_VERSION); \
	else { $(BIN)/python -m pip --version || $(BIN)/python -m ensurepip; } && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION); fi
	$(INSTALL) --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	$(call COMPILED,$(BIN))
	touch $@

# The oldest supported torch. The other pins stay, except those of the packages that torch brings, and setuptools, which
# torch 2.11 needs below 82.
$(OLDEST)/.installed: $(INSTALLED)
	$(BIN)/uv venv --clear --python $(BIN)/python $(OLDEST)
	grep -vE '^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z-]+)==' constraints.txt \
		| grep -v '^setuptools==' > $(OLDEST)/constraints.txt
	printf '%s\n' 'torch==2.11.*' 'torchvision==0.26.*' >> $(OLDEST)/constraints.txt
	$(INSTALL) --python $(OLDEST)/bin/python --constraint $(OLDEST)/constraints.txt --editable '.[dev]'
	$(call COMPILED,$(OLDEST)/bin)
	touch $@

clean:  ## remove .venv, .venv-oldest, site, data and runs
	rm -rf .venv .venv-oldest data runs site
