# make train | test | test-slow | test-pythons | lint | types | docs | clean
# Each builds the environment that it needs in .venv, where it is missing or stale.

# A Python that MXNet 1.9.1 runs on, with what it takes to make an environment.
WORKS := import sys, venv, ensurepip; assert (3, 10) <= sys.version_info < (3, 15)
ifndef PYTHON
PYTHON := $(shell for python in python3.11 python3.12 python3.10 python3.13 python3.14 python3 python; do \
	$$python -c '$(WORKS)' 2>/dev/null && command -v $$python && break; done)
endif
ifeq ($(PYTHON),)
NEW := $(if $(shell command -v uv),uv venv --quiet --seed --python 3.12)
else
NEW := $(shell $(PYTHON) -c '$(WORKS)' 2>/dev/null && echo '$(PYTHON) -m venv')
endif
VENV := .venv
RUN := $(VENV)/bin/python
TEST_EXTRAS := cpu,dev,mlserver,onnx,oracle
# Another numpy than MXNet's metadata allow, as in NUMPY='numpy>=2'.
NUMPY :=
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check

# An environment whose Python does not run any more is stale.
ifneq ($(shell $(RUN) -c 'print("runs")' 2>/dev/null),runs)
STALE := stale
endif

WAY_OUT := $(if $(shell command -v apt),apt install python3-venv brings one on Debian 12 and Ubuntu \
	22.04 or later,install one$(comma) or uv$(comma) which brings its own)
comma := ,

.PHONY: stale train test test-slow test-pythons lint types docs clean

train: $(VENV)/cpu,serve
	$(RUN) train/cifar.py --recipe digits

# Side by side, each on one thread: most networks of the tests are too small for two. One more than
# there are CPUs, as some wait, up to four. Neighbours stay together, as they share what they set up.
PROCESSES := $(shell cpus=$$(nproc); echo $$((cpus < 3 ? cpus + 1 : 4)))
test: $(VENV)/$(TEST_EXTRAS)
	OMP_NUM_THREADS=1 $(RUN) -W error -m pytest --numprocesses $(PROCESSES) --dist worksteal

# Those of SLOW, by default all.
SLOW :=
test-slow: $(VENV)/$(TEST_EXTRAS)
	$(RUN) -W error -m pytest -m slow $(SLOW)

# The tests on every other Python of MINORS that is on PATH or that pyenv has, without PyTorch,
# whose wheels for them may bring gigabytes of CUDA. An error where there is none of them.
MINORS := 10 11 12 13 14
test-pythons:
	@ran=; for minor in $(MINORS); do \
		for python in python3.$$minor $$(pyenv root 2>/dev/null)/versions/3.$$minor.*/bin/python; do \
			$$python -c '$(WORKS)' 2>/dev/null || continue; \
			ran="$$ran $$minor"; \
			test $$($(PYTHON) -c 'import sys; print(sys.version_info[1])') = $$minor && break; \
			$(MAKE) test PYTHON=$$python VENV=.venv-3.$$minor TEST_EXTRAS=cpu,dev,mlserver,onnx || exit 1; \
			break; \
		done; \
	done; \
	test -n "$$ran" || { echo "error: no Python 3.N is here, N being $(MINORS)" >&2; exit 2; }

lint: $(VENV)/$(TEST_EXTRAS)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

# Of all that the tests need, since packages that are there tell their types.
types: $(VENV)/$(TEST_EXTRAS)
	$(RUN) -m mypy

# Whatever Sphinx warns of is an error.
docs: $(VENV)/cpu,docs
	$(RUN) -m sphinx -W --keep-going --quiet docs docs/_build
	@echo docs/_build/index.html

clean:
	rm -rf .venv* .mypy_cache docs/_build

# An empty file in the environment says which extras of pyproject.toml were installed whole.
$(VENV)/%: pyproject.toml $(STALE)
	@test -n "$(NEW)" || { echo "error: $(or $(PYTHON),no command) is no Python 3.10 to 3.14 with venv; $(WAY_OUT)" >&2; exit 2; }
	@$(RUN) -c '' 2>/dev/null || { $(if $(wildcard $(VENV)/pyvenv.cfg),rm -rf $(VENV);) $(NEW) $(VENV); }
	$(PIP) --editable '.[$*]'
	$(PIP) --no-deps mxnet==1.9.1 # which pip leaves out on Python 3.13 and later
	$(if $(NUMPY),$(PIP) '$(NUMPY)')
	@touch '$@'
