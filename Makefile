# Deviation Magnet. `make` alone prints what can be done.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
OPS := $(PY) -m services.ops
RUN ?= $(VENV)/.run-installed
DEV ?= $(VENV)/.dev-installed
CLIENTS := .venv-clients
ROOT = $(shell [ $$(id -u) = 0 ] || echo sudo)
COMPILE := $(VENV)/bin/pip-compile -q --generate-hashes --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header --strip-extras --allow-unsafe

.DEFAULT_GOAL := help
.PHONY: help doctor why up down status logs tap report notify-test scale pause resume cancel-all flatten paper paper-reset bus-keys replay test simulate test-the-tester soak goals kills test-browser test-clients rows bench bench-compare bench-check bench-peers lint format lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: $(RUN) ## set up what is missing, start everything, wait until it is healthy
	@$(OPS) up

doctor: $(RUN) ## look at keys, account, clock, universe, disk before anything trades; JSON=1
	@$(PY) -m services.doctor $(if $(JSON),--json)

why: $(RUN) ## why a symbol has no order: SYMBOL=SOLUSDT [AT=2026-01-31T12:34]
	@$(PY) -m services.why --symbol $(or $(SYMBOL),$(error say which: make why SYMBOL=SOLUSDT)) $(if $(AT),--at $(AT))

down: $(RUN) ## stop everything; resting orders and positions stay at the exchange
	@$(OPS) down

status: $(RUN) ## processes, shards, rates, lots, mode; JSON=1 for machines
	@$(OPS) status $(if $(JSON),--json)

logs: $(RUN) ## follow the logs; SERVICE=router for one of them
	@$(OPS) logs $(if $(SERVICE),--service $(SERVICE))

tap: $(RUN) ## watch messages; TOPIC=quote SYMBOL=SOLUSDT COUNT=10 JSON=1
	@$(PY) -m services.tap $(if $(TOPIC),--topic $(TOPIC)) $(if $(SYMBOL),--symbol $(SYMBOL)) $(if $(COUNT),--count $(COUNT)) $(if $(JSON),--json)

report: $(RUN) ## what was traded, as tables and as one HTML file: SINCE=7d or 2026-01-31; JSON=1
	@$(PY) -m services.report $(if $(SINCE),--since $(SINCE)) $(if $(HTML),--html $(HTML)) $(if $(CSV),--csv $(CSV)) $(if $(JSON),--json)

notify-test: $(RUN) ## send one message to every address in NOTIFY_URLS
	@$(PY) -m services.notifier --test

scale: $(RUN) ## change the number of signal workers while everything runs: make scale N=4
	@$(OPS) scale $(or $(N),$(error say how many: make scale N=4))

pause: $(RUN) ## cancel entries, open nothing new; exits stay (REDUCE_ONLY)
	@$(OPS) mode REDUCE_ONLY

resume: $(RUN) ## back to RUN
	@$(OPS) mode RUN

cancel-all: $(RUN) ## cancel every order of ours, exits too (CANCEL_ALL)
	@$(OPS) mode CANCEL_ALL

flatten: $(RUN) ## cancel entries and close every lot near the last price (FLATTEN)
	@$(OPS) mode FLATTEN

paper: $(RUN) ## the paper exchange alone, for any Bybit client; Ctrl-C ends it
	@$(PY) -m services.paper

paper-reset: $(RUN) ## a new paper account and an empty ledger (only with BYBIT_ENV=paper, stopped)
	@$(OPS) paper-reset

bus-keys: $(RUN) ## a pair of CURVE keys, for processes on several machines (BUS_TCP)
	@$(OPS) bus-keys

replay: $(RUN) ## a recorded market through the whole pipeline in one thread: DATA=path [HOURS=24]
	@$(PY) -m services.backtest --data $(or $(DATA),$(error say which: make replay DATA=file.npz)) $(if $(HOURS),--hours $(HOURS)) $(if $(START),--start $(START))

test: $(DEV) lint ## all checks and tests, offline
	@$(PY) -m pytest -n 3 --dist loadgroup

simulate: $(DEV) ## whole lives under random faults: SEEDS=10000, or SEED=17 for one and its shortest plan
	@PYTHONHASHSEED=0 $(PY) -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),10000))

test-the-tester: $(DEV) ## plant bugs in a copy, one at a time: how many lives until the simulation sees each
	@PYTHONHASHSEED=0 $(PY) -m tests.simulation.planted $(if $(SEEDS),--seeds $(SEEDS))

soak: $(DEV) ## 500 symbols, real processes, random faults: HOURS=1 SPEED=1 EVERY=60 (market seconds)
	@$(PY) -m tests.soak --hours $(or $(HOURS),1) --speed $(or $(SPEED),1) --every $(or $(EVERY),60)

goals: $(DEV) ## how fast the bot finds and mends what goes wrong, against its goals
	@$(PY) -m tests.goals

kills: $(DEV) ## kill -9 at random moments, nothing acknowledged may be lost: KILLS=1000, or RECOVERY=20 for the times
	@$(PY) -m tests.kills $(if $(RECOVERY),--recovery $(RECOVERY),--kills $(or $(KILLS),1000))

test-browser: $(DEV) ## the dashboard in a real browser (Debian's chromium), against a running bot
	@command -v chromium >/dev/null || { echo "installing chromium"; $(ROOT) apt-get update -qq && $(ROOT) apt-get install -y -qq chromium >/dev/null; }
	@$(PY) -m pytest tests/browser --browser

test-clients: $(CLIENTS)/.installed ## ccxt and nautilus_trader against the paper exchange, in .venv-clients
	@$(CLIENTS)/bin/python -m pytest tests/clients

rows: $(DEV) ## the fault catalogue as a table: row, test, result
	@$(PY) -m tests.rows

bench: $(DEV) ## speed beside the threaded design, in one run: ONLY="micro latency" SECONDS=30 JSON=file
	@$(PY) -m tests.bench $(ONLY) --seconds $(or $(SECONDS),30) $(if $(JSON),--json $(JSON))

bench-compare: $(DEV) ## the ratios of two results: A=before.json B=after.json
	@$(PY) -m tests.bench --compare $(or $(A),$(error say which: make bench-compare A=before.json B=after.json)) $(B)

bench-check: $(DEV) ## fail if a micro bench is 20 % slower than its reference; KEEP=1 makes a new one
	@$(PY) -m tests.bench --check $(if $(KEEP),--keep)

bench-peers: $(CLIENTS)/.installed ## the micro benches with TA-Lib, nautilus_trader and pandas, in .venv-clients
	@$(CLIENTS)/bin/python -m tests.bench micro

lint: $(DEV) ## format check, lint, types
	@$(VENV)/bin/ruff format --check -q . && $(VENV)/bin/ruff check -q . && $(VENV)/bin/mypy

format: $(DEV) ## format and fix what can be fixed
	@$(VENV)/bin/ruff format -q . && $(VENV)/bin/ruff check --fix -q .

lock: $(DEV) ## resolve the dependencies anew, with hashes
	@$(COMPILE) -o requirements.lock pyproject.toml
	@$(COMPILE) --extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml
	@$(COMPILE) --extra clients -c requirements.lock -o requirements-clients.lock pyproject.toml

clean: ## remove the virtual environment and caches; RUN_DIR stays
	rm -rf $(VENV) $(CLIENTS) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 up")'
	@echo "setting up $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(RUN): requirements.lock | $(VENV)/bin/python
	@$(PY) -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

$(CLIENTS)/.installed: requirements-clients.lock
	@test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-clients.lock
	@touch $@

$(DEV): requirements-dev.lock | $(VENV)/bin/python
	@$(PY) -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@ $(RUN)
