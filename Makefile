# Everything runs from a virtual environment that the first target makes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs

# Settings of `demo` and `seeds`, chosen with benchmarks/tune.py; README says how.
CITIES := --task city-continent --train-examples 256 --eval-examples 400
TUNED := --adam.steps 350 --adam.learning-rate 1e-4 \
	--ivon-lora.steps 350 --ivon-lora.learning-rate 0.03 --ivon-lora.gamma 75

.PHONY: help demo test test-slow seeds lint format package clean
help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/developing: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --group dev
	touch $@

demo: $(VENV)/installed  ## fine-tune SmolLM2-135M with Adam and IVON-LoRA, compare
	rm -rf $(OUT)/demo
	$(BIN)/ivon-jax compare $(CITIES) $(TUNED) \
		--taus 0.5 1 2 4 16 --prunes 0.1 0.3 0.5 --out $(OUT)/demo

test: $(VENV)/developing  ## the whole suite, but for what takes minutes
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"
	$(BIN)/python -m pytest -n 2 --doctest-modules ivon_jax

test-slow: $(VENV)/developing  ## the rest of the suite
	$(BIN)/python -m pytest -m slow

seeds: $(VENV)/installed  ## the README's table: three seeds (half an hour on two cores)
	for seed in 0 1 2; do \
		$(BIN)/ivon-jax compare $(CITIES) $(TUNED) \
			--seed $$seed --out $(OUT)/seeds/$$seed || exit; \
	done
	$(BIN)/ivon-jax table $(OUT)/seeds/*

lint: $(VENV)/developing  ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/developing  ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

package: $(VENV)/developing  ## build, install into an empty environment, run
	rm -rf dist $(VENV)-package
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv $(VENV)-package
	$(VENV)-package/bin/python -m pip install --quiet dist/*.whl
	cd dist && ../$(VENV)-package/bin/ivon-jax data --task city-continent
	$(VENV)-package/bin/python -m pip install --quiet --force-reinstall --no-deps dist/*.tar.gz
	cd dist && ../$(VENV)-package/bin/ivon-jax models
	rm -rf $(VENV)-package

clean:  ## remove environments and builds, not runs
	rm -rf $(VENV) $(VENV)-* dist .mypy_cache .pytest_cache .ruff_cache
