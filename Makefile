# Everything runs from a virtual environment that the first target creates.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Bytecode is made of what is imported, then kept; pip would compile all of torch.
INSTALL := -m pip install --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE
OUT ?= runs
TESTS ?= tests
# Whole files, in the folders' order: by number of tests, long files of few end it alone.
SHARED := -n 2 --dist loadfile --no-loadscope-reorder
# The newest Python installed, which gets the newest JAX, and no torch.
NEWEST ?= $(shell for python in python3.13 python3.12 \
	~/.pyenv/versions/3.13.*/bin/python3.13 ~/.pyenv/versions/3.12.*/bin/python3.12; \
	do $$python --version >/dev/null 2>&1 && echo $$python && break; done)

# Settings of `demo` and `seeds`, chosen with `ivon-jax tune`; docs/results.md says how.
CITIES := --task city-continent --train-examples 256 --eval-examples 400
TUNED := --adam.steps 350 --adam.learning-rate 1e-4 \
	--ivon-lora.steps 350 --ivon-lora.learning-rate 0.03 --ivon-lora.gamma 75

# Every method: chosen by five trials each, see docs/results.md.
METHODS := --methods adam ivon-lora ivon blob swag adam-average ensemble \
	--fit temperature:adam "tfb:adam --anchors 128" \
	"laplace-diag:adam --prior validation" "laplace-kfac:adam --prior validation" \
	"tau:ivon-lora --taus 0.5 1 2" \
	--task city-continent --train-examples 656 --validation-examples 400 \
	--eval-examples 400 --samples 5 --sweep-samples 2 --taus 0.5 2
METHODS_TUNED := --adam.steps 128 --adam.learning-rate 3e-4 \
	--ivon-lora.steps 128 --ivon-lora.learning-rate 0.06 --ivon-lora.gamma 300 \
	--ivon-lora.beta2 0.993 \
	--ivon.steps 128 --ivon.learning-rate 0.1 --ivon.gamma 150 --ivon.beta2 0.993 \
	--ivon.weight-decay 0.1 \
	--blob.steps 128 --blob.learning-rate 5e-4 --blob.kl-learning-rate 0.01 \
	--blob.kl-cycle 32 \
	--swag.steps 128 --swag.learning-rate 2e-4 --swag.collect-rate 1 \
	--adam-average.steps 128 --adam-average.learning-rate 3e-4 \
	--ensemble.steps 128 --ensemble.learning-rate 3e-4 --ensemble.members 4

SST2 := --task sst2 --train-examples 256 --eval-examples 400
SST2_TUNED := --adam.steps 128 --adam.learning-rate 1e-4 \
	--ivon-lora.steps 128 --ivon-lora.learning-rate 0.03 --ivon-lora.gamma 300

SUMS := --task sums --eval-examples 40 --samples 4 --outputs 4 \
	--prunes 0.1 --sweep-samples 4
SUMS_TUNED := --adam.steps 80 --adam.batch-size 8 --adam.learning-rate 1e-3 \
	--ivon-lora.steps 80 --ivon-lora.batch-size 8 --ivon-lora.learning-rate 0.1 \
	--ivon-lora.ess 1e6

.PHONY: help demo test newest test-newest test-slow seeds methods sst text text-seeds tasks results docs lint format package clean
help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) --upgrade pip
	$(BIN)/python $(INSTALL) --editable .
	touch $@

$(VENV)/developing: $(VENV)/installed
	$(BIN)/python $(INSTALL) --group dev
	touch $@

demo: $(VENV)/installed  ## fine-tune SmolLM2-135M with Adam and IVON-LoRA, compare
	rm -rf $(OUT)/demo
	$(BIN)/ivon-jax compare $(CITIES) $(TUNED) \
		--taus 0.5 1 4 16 --prunes 0.1 0.3 0.5 --sweep-samples 3 --out $(OUT)/demo

test: $(VENV)/developing  ## the test suite without slow tests
	$(BIN)/python -m pytest $(SHARED) -m "not slow" $(TESTS)
	$(if $(filter tests,$(TESTS)),$(BIN)/python -m pytest -n 2 --doctest-modules ivon_jax)

newest:  # the environment of the newest Python
	$(if $(NEWEST),$(MAKE) $(VENV)-newest/developing PYTHON=$(NEWEST) VENV=$(VENV)-newest)

test-newest:  ## the same on the newest Python, if one above 3.11 is installed
	@$(if $(NEWEST),,echo "no Python 3.12 or 3.13 found: not tested")
	$(if $(NEWEST),$(MAKE) test PYTHON=$(NEWEST) VENV=$(VENV)-newest)

test-slow: $(VENV)/developing  ## slow tests, and property tests with new random cases
	$(BIN)/python -m pytest -m "slow or hypothesis" --hypothesis-profile default

seeds: $(VENV)/installed  ## the README's table: three seeds (half an hour on two cores)
	for seed in 0 1 2; do \
		$(BIN)/ivon-jax compare $(CITIES) $(TUNED) \
			--taus 0.5 2 --prunes 0.1 --sweep-samples 10 \
			--seed $$seed --out $(OUT)/seeds/$$seed --resume || exit; \
	done
	$(BIN)/ivon-jax table $(OUT)/seeds/*

methods: $(VENV)/installed  ## every method and fit, three seeds (two hours on two cores)
	for seed in 0 1 2; do \
		$(BIN)/ivon-jax compare $(METHODS) $(METHODS_TUNED) \
			--seed $$seed --out $(OUT)/methods/$$seed --resume || exit; \
	done
	$(BIN)/ivon-jax table $(OUT)/methods/*

sst: $(VENV)/installed  ## docs/results.md's SST-2 table, with IVON_JAX_DATA (45 minutes)
	for seed in 0 1 2; do \
		$(BIN)/ivon-jax compare $(SST2) $(SST2_TUNED) \
			--seed $$seed --out $(OUT)/sst/$$seed --resume || exit; \
	done
	$(BIN)/ivon-jax table $(OUT)/sst/*

text: $(VENV)/installed  ## votes on word problems: Adam and IVON-LoRA (25 minutes)
	rm -rf $(OUT)/text
	$(BIN)/ivon-jax compare $(SUMS) $(SUMS_TUNED) --out $(OUT)/text

text-seeds: $(VENV)/installed  ## the same, three seeds
	for seed in 0 1 2; do \
		$(BIN)/ivon-jax compare $(SUMS) $(SUMS_TUNED) \
			--seed $$seed --out $(OUT)/text-seeds/$$seed --resume || exit; \
	done
	$(BIN)/ivon-jax table $(OUT)/text-seeds/*

tasks: $(VENV)/installed  ## three steps of every task, with IVON_JAX_DATA
	for task in sst2 cola rte mrpc winogrande_s winogrande_m \
		arc_challenge arc_easy openbookqa boolq; do \
		$(BIN)/ivon-jax train --task $$task --train-examples 64 \
			--eval-examples 16 --steps 3 --out $(OUT)/tasks/$$task && \
		$(BIN)/ivon-jax evaluate $(OUT)/tasks/$$task --samples 2 || exit; \
	done

results: $(VENV)/installed  ## the tables of README and docs/results.md, from results/
	$(BIN)/python -m benchmarks.results

docs: $(VENV)/developing  ## the documentation, in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(VENV)/developing  ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/developing  ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The template and script of reports are files of the package.
PAGE := from ivon_jax.train.report.page import render; render(dict(title=''), '')

package: $(VENV)/developing  ## build, install into an empty environment, run
	rm -rf dist $(VENV)-package
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv $(VENV)-package
	$(VENV)-package/bin/python $(INSTALL) dist/*.whl
	cd dist && ../$(VENV)-package/bin/ivon-jax data --task city-continent
	cd dist && ../$(VENV)-package/bin/python -c "$(PAGE)"
	$(VENV)-package/bin/python $(INSTALL) --force-reinstall --no-deps dist/*.tar.gz
	cd dist && ../$(VENV)-package/bin/ivon-jax models
	cd dist && ../$(VENV)-package/bin/python -c "$(PAGE)"
	rm -rf $(VENV)-package

clean:  ## remove environments and builds, not runs
	rm -rf $(VENV) $(VENV)-* dist site .mypy_cache .pytest_cache .ruff_cache
