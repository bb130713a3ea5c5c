# The two commands to know:
#
#     make tune                                          set up .venv, fetch MNIST, run the search
#     make tune ARGS="--num-samples 8 --max-epochs 2"    the same, with flags for scripts/tune.py
#     make test                                          set up .venv, run every check
#     make test ARGS="-n 0 -k winner --pdb"              the same, with flags for pytest: here no workers
# .venv is made with `python3`. To use another: make clean, then e.g. make setup PYTHON=python3.12

PYTHON ?= python3
ARGS =

VENV = .venv
RUN = $(VENV)/bin/python
SYNE_TUNE = $(VENV)/syne-tune
# pip would compile what it installs on one core; COMPILE uses all of them. Where PYTHONDONTWRITEBYTECODE is set,
# as in many images, every process of a search would otherwise compile its imports, which takes twice as long.
PIP_INSTALL = $(RUN) -m pip install -qq --disable-pip-version-check --no-compile --constraint constraints.txt
COMPILE = $(RUN) -m compileall -q -j 0 -x '/tests/' $(VENV)/lib tune_mnist > /dev/null || true
# Most tests wait for Ray's processes, so a third worker pays off on two cores.
WORKERS = -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: help tune test test-benchmarks compat stress bench gpu screenshots setup format clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile

tune: $(VENV)/.installed ## run the search; ARGS="..." goes to scripts/tune.py
	@$(RUN) scripts/tune.py $(ARGS)

test: $(VENV)/.installed ## formatting, lint, types, tests; ARGS="..." goes to pytest
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy -n auto
	$(VENV)/bin/lint-imports --no-logo
	$(RUN) -m pytest $(WORKERS) --ignore tests/benchmarks $(ARGS)

test-benchmarks: $(VENV)/.installed ## the tests of benchmarks/; ARGS="..." goes to pytest
	$(RUN) -m pytest $(WORKERS) tests/benchmarks $(ARGS)

compat: $(VENV)/.installed ## the core of the tests on the oldest, a middle and the newest Ray and Optuna; ARGS="..." goes to pytest
	@$(RUN) -m tests.lab.compat $(WORKERS) $(ARGS)

stress: $(VENV)/.installed ## kill workers, nodes and drivers at random (root, Linux); ARGS="-n 60"
	@$(RUN) -c 'import pathlib; from tune_mnist.mnist import data; data.prepare("mnist", pathlib.Path("data"))'
	@bash tests/lab/isolated.sh $(RUN) -m tests.lab.stress $(ARGS)

bench: $(VENV)/.installed $(SYNE_TUNE)/.installed ## compare with other tuners, short form; ARGS="search --full" for one in full
	@$(RUN) -m benchmarks $(ARGS)

gpu: $(VENV)/.installed ## test the whole GPU path in under eight minutes; ARGS="--device cpu" rehearses it
	@$(RUN) -m benchmarks.gpu $(ARGS)

screenshots: $(VENV)/.installed ## make the pictures of the README (Chromium); ARGS=runs/NAME
	@$(RUN) docs/screenshots.py $(ARGS)

setup: $(VENV)/.installed ## make .venv with everything that the other commands need

format: $(VENV)/.installed ## let ruff format the code and fix what it can
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

clean: ## remove .venv and the caches, but neither data/ nor runs/
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find tune_mnist scripts tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# Syne Tune, one of the tuners that `make bench` compares with, is kept apart from .venv's packages: only its own
# program may see it. Left out are requirements that this program does not import, and xgboost's NCCL. If it
# cannot be installed, the benchmark runs without it.
$(SYNE_TUNE)/.installed: $(VENV)/.installed benchmarks/contestants/syne-tune.txt
	-@$(PIP_INSTALL) --no-deps --upgrade --target $(@D) --requirement benchmarks/contestants/syne-tune.txt \
	    && touch $@

# The stamp is removed first and restored last. So an interrupted set-up leaves none, and the next one starts
# from an empty .venv; a set-up that is only out of date is updated in place.
# setuptools goes in first because pip does not apply constraints to the build environment that it makes.
$(VENV)/.installed: pyproject.toml constraints.txt
	@if [ -f $@ ]; then \
	    echo "Updating $(VENV)"; \
	    rm $@; \
	else \
	    $(PYTHON) -c '$(PREFLIGHT)' && \
	    echo "Setting up $(VENV): 3 GB to download, 6 GB on disk (Linux), a few minutes" && \
	    $(PYTHON) -m venv --clear $(VENV); \
	fi
	@$(PIP_INSTALL) setuptools
	@$(PIP_INSTALL) --no-build-isolation --editable '.[test]'
	@$(COMPILE)
	@touch $@

# Old Pythons must be able to parse this, to be rejected by it.
PREFLIGHT = \
    import sys; \
    version = "%d.%d" % sys.version_info[:2]; \
    (3, 10) <= sys.version_info[:2] <= (3, 13) or sys.exit( \
        "tune-mnist needs Python 3.10 to 3.13, but $(PYTHON) is " + version \
        + ". Name another one: make $(MAKECMDGOALS) PYTHON=python3.12"); \
    import importlib.util; \
    importlib.util.find_spec("ensurepip") or sys.exit( \
        "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt install python" \
        + version + "-venv")
