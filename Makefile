# Every target sets up .venv by itself; all it needs is Python 3.11 (or newer) and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
REFERENCE := adapters alignment checkpoints connectivity errors hub matching merging modeling moe symmetry verification

.PHONY: demo cards families bench test check format docs lock clean

demo: $(READY)  ## train, align, merge and measure on real digits: VARIANT=sparse|dense|shared
	$(BIN)/hf-moe-lmc demo --variant $(or $(VARIANT),sparse)

cards: $(READY)  ## run the demo of every variant, and renew model_cards/ with what it finds
	for variant in sparse shared dense; do \
	  $(BIN)/hf-moe-lmc demo --variant $$variant && mkdir -p model_cards/moe-vit-mnist-$$variant && \
	  cp demo-$$variant/README.md demo-$$variant/barrier.png model_cards/moe-vit-mnist-$$variant/ || exit 1; \
	done

families: $(READY)  ## check every MoE family of the installed Transformers, and renew the README's table
	$(BIN)/python -m tests.battery

bench: $(READY)  ## the assignment benchmark into benchmarks/results; FULL=1 up to the largest sizes (about an hour)
	$(BIN)/python -m benchmarks.assignment $(if $(FULL),--full)

test: $(READY)  ## the whole test suite
	# One worker more than there are cores: some tests wait for processes and servers.
	$(BIN)/pytest -n $$($(BIN)/python -c 'import os; print(os.cpu_count() + 1)') --dist loadgroup

check: $(READY)  ## format, lint, types, import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)  ## the API reference out of the docstrings, into api/index.html
	$(BIN)/pdoc --docformat google --output-directory api hf_moe_lmc \
	  $(foreach folder,$(REFERENCE),hf_moe_lmc.$(folder))

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

lock: $(READY)  ## pin what the .venv holds now
	$(BIN)/python -m pip freeze --exclude-editable | grep -v '^hf_moe_lmc' | sed 's/+cpu//' > constraints.txt

clean:
	rm -rf .venv api demo-sparse demo-dense demo-shared
