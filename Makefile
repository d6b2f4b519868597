# Everything a contributor or CI runs. `make help` lists it.
PYTHON      ?= python3
VENV        := .venv
STAMP       := $(VENV)/.installed
CONFIG      ?= policyd/data/policyd.toml
PYTEST_ARGS ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install run test test-debian test-packages test-package check cover chaos bench man deb dist clean

help:
	@echo 'make run          run policyd in the foreground on 127.0.0.1:10047, data in var/'
	@echo 'make test         install what the tests need, then run all of them on the newest releases'
	@echo 'make test-debian  the same with /usr/bin/python3 and packages of Debian alone'
	@echo 'make deb          build the Debian package of what is committed into var/deb'
	@echo 'make test-package install, upgrade, remove it on clean Debian 12 and 13 in containers; as root on Debian'
	@echo 'make dist         build wheel and sdist of what is committed into var/dist, and check them'
	@echo 'make check        lint, format, types, import rings, documentation; root only to install scdoc'
	@echo 'make cover        all but the system tests; branch coverage of the parts that must not be wrong'
	@echo 'make chaos        kill -9 under load 100 times; the suite does it 12 times'
	@echo 'make bench        measure (PYTHON and packages as for make test)'
	@echo 'make install      make $(VENV) and nothing else'
	@echo 'make man          render the manual pages into var/man; man -l shows them'
	@echo 'make clean        remove what these commands made, the database in var/ included'

install: $(STAMP)

$(STAMP): pyproject.toml tools/make-venv.sh
	@tools/make-venv.sh $(VENV) $(PYTHON)
	@touch $@

run: $(STAMP)
	@mkdir -p var
	@exec $(VENV)/bin/policyd --config $(CONFIG)

test-packages:
	@tools/install-test-packages.sh test

test: test-packages $(STAMP)
	$(VENV)/bin/python -m pytest --no-skips $(PYTEST_ARGS)

test-debian: test-packages
	PYTHONPATH='$(CURDIR)' /usr/bin/python3 -m pytest --no-skips $(PYTEST_ARGS)

test-package: test-packages $(STAMP)
	@tools/install-test-packages.sh deb
	$(VENV)/bin/python -m pytest --no-skips --package -rP -o faulthandler_timeout=1200 $(PYTEST_ARGS) tests/package

deb:
	@tools/build-deb.sh var/deb

dist: $(STAMP)
	@tools/build-dist.sh var/dist $(VENV)

check: $(STAMP)
	@tools/install-test-packages.sh docs
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python tools/check_docs.py
	$(VENV)/bin/python -m pytest -q -m 'docs or rings'

cover: $(STAMP)
	@tools/install-test-packages.sh docs
	@mkdir -p var/coverage
	$(VENV)/bin/coverage run -m pytest --no-skips -m 'not system' $(PYTEST_ARGS)
	$(VENV)/bin/python tools/check_coverage.py

chaos: $(STAMP)
	POLICYD_ROUNDS=100 $(VENV)/bin/python -m pytest --no-skips -rP $(PYTEST_ARGS) tests/system/test_kill9.py

bench: $(STAMP)
	@tools/install-test-packages.sh bench
	$(VENV)/bin/python -m bench $(BENCH_ARGS)

man:
	@tools/install-test-packages.sh docs
	@mkdir -p var/man
	@for page in man/*.scd; do scdoc <$$page >var/man/$$(basename $$page .scd) || exit 1; done

clean:
	rm -rf $(VENV) var build dist policyd.egg-info .hypothesis .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
