# make train | test | test-pythons | lint. Each builds .venv first where it is missing or stale.

# A Python that MXNet 1.9.1 runs on, with what it takes to make an environment.
WORKS = import sys, venv, ensurepip; assert (3, 9) <= sys.version_info < (3, 13)
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.10 python3.9 python3 python,\
	$(shell $(p) -c '$(WORKS)' 2>/dev/null && command -v $(p))))
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: train test test-slow test-pythons lint clean
.DELETE_ON_ERROR:

train: $(VENV)/cpu
	$(RUN) train/cifar.py --dataset digits --model preact20 --batch-size 64 --num-epochs 20 \
		--lr-step-epochs 12,17 --warmup-steps 20

test: $(VENV)/cpu,dev,oracle
	$(RUN) -m pytest $(PYTEST)

test-slow: $(VENV)/cpu,dev,oracle
	$(RUN) -m pytest -m slow $(PYTEST)

lint: $(VENV)/cpu,dev,oracle
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

# The tests without the oracle (PyTorch) on every other Python that is on PATH or known to pyenv.
test-pythons:
	for p in $$(ls -d $$(pyenv root 2>/dev/null)/versions/3.{9,10,12}.*/bin/python 2>/dev/null); do \
		$(MAKE) test-python VENV=.venv-$$($$p -c 'import sys; print(sys.version_info[1])') PYTHON=$$p || exit 1; \
	done

clean:
	rm -rf .venv*

# An environment is a folder with one empty file for each set of extras that was installed whole.
$(VENV)/%: setup.py
	@test -n "$(PYTHON)" || { echo "error: no Python 3.9 to 3.12 with venv on PATH; install" \
		"Python 3.11 (Debian: apt install python3.11-venv)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	@touch '$@'
