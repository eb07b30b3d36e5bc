# make train: everything from a bare Python 3.11+ to a family of three models, its picture and a sample.
# make test: the tests. Both reuse what is there already.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
# on two workers, file by file: the tests of a file share what takes long to make
TEST = $(RUN) -m pytest -q -n 2 --dist=loadfile --no-loadscope-reorder
CONFIG ?= pystdlib_family

train: $(VENV)/ready data/pystdlib/meta.json
	$(RUN) train.py config/$(CONFIG).py --init_from=auto
	$(RUN) sample.py out/$(CONFIG) --prompt="def "
	$(RUN) -m tools.plot out/$(CONFIG)

test: $(VENV)/ready
	$(TEST)
	$(if $(wildcard /dev/nvidia0),$(RUN) -m pytest -q tests/test_gpu.py --gpu)

# with the optional packages that some tests compare with, and the tests that take minutes
test-all: $(VENV)/extra
	$(TEST) --slow

# the linter, and the order of the house: who may import whom
lint: $(VENV)/extra
	$(RUN) -m ruff check .
	$(RUN) -m pytest -q tests/test_house.py tests/test_docs.py

data/pystdlib/meta.json: | $(VENV)/ready
	$(RUN) data/pystdlib/prepare.py

$(VENV)/ready: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q -r requirements.txt
	touch $@

$(VENV)/extra: requirements-extra.txt | $(VENV)/ready
	$(RUN) -m pip install -q -r requirements-extra.txt
	touch $@

.PHONY: train test test-all lint
