# Everything runs in .venv, which the first command makes from a hashed lock; tests and lint add what they need from a
# second one. Relative paths only: the project may lie in a folder with a space in its name.
PYTHON ?= python3
PY := .venv/bin/python
ARGS ?=

# an inherited PYTHONDONTWRITEBYTECODE would make every import three times slower
export PYTHONDONTWRITEBYTECODE :=
export MLFLOW_DISABLE_TELEMETRY := true

.DEFAULT_GOAL := help
.PHONY: help study test reliability browser cluster quick check ui search confirm promote frontier draw bench screenshots curves results density detector lock clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

study: .venv/.ready  ## train three widths and compare them: run.py -m model.filters=16,32,64
	$(PY) src/run.py -m model.filters=16,32,64 $(ARGS)

test: .venv/.dev  ## every test but those of the next three lines, the slow ones included
	$(PY) -m pytest -m "not reliability and not browser and not cluster" $(ARGS)

reliability: .venv/.dev  ## the tests of commands that are killed, cut off or out of disk, and go on
	$(PY) -m pytest -m reliability $(ARGS)

browser: .venv/.dev  ## the tests of pages in a headless Chromium, where there is one
	$(PY) -m pytest -m browser $(ARGS)

cluster: .venv/.ray  ## the tests on several hosts, made of Linux namespaces: Ray, PostgreSQL (needs root)
	$(PY) -m pytest -m cluster --dist worksteal $(ARGS)

quick: .venv/.dev  ## the tests that take a moment each: two thirds of them, in less than a minute
	$(PY) -m pytest -m "not slow and not reliability and not browser and not cluster" $(ARGS)

check: .venv/.dev  ## format, lint, types, and who may import whom
	$(PY) -m ruff format --check src sweeps tests tools
	$(PY) -m ruff check src sweeps tests tools
	$(PY) -m mypy
	PYTHONPATH=src .venv/bin/lint-imports

ui: .venv/.ready  ## compare runs in the browser, the newest result first
	PYTHONPATH=src $(PY) -m digit_study.tracking.ui $(ARGS)

search: .venv/.ready  ## the Optuna sweep
	$(PY) sweeps/optuna_search.py $(ARGS)

confirm: .venv/.ready  ## the sweep's best on fresh seeds
	$(PY) sweeps/confirm.py $(ARGS)

promote: .venv/.ready  ## the confirmed winner into the registry, if it earns it
	$(PY) sweeps/promote.py $(ARGS)

frontier: .venv/.ready  ## every shipped network on five seeds: hours; the same again goes on
	$(PY) sweeps/frontier.py $(ARGS)

draw: .venv/.ready  ## draw digits in the browser, read while you draw by the champion
	$(PY) src/draw.py $(ARGS)

bench: .venv/.dev  ## the benchmarks that docs/performance.md quotes (many minutes on an idle machine)
	$(PY) tests/benchmarks/bench_tracking.py
	$(PY) tests/benchmarks/bench_overhead.py
	$(PY) tests/benchmarks/bench_calibration.py
	$(PY) tests/benchmarks/bench_confirmation.py
	$(PY) tests/benchmarks/bench_draw.py
	$(PY) tests/benchmarks/bench_slow_store.py
	test ! -f .venv/.ray || $(PY) tests/benchmarks/bench_engine.py
	$(PY) tests/benchmarks/bench_sweep.py $(ARGS)

screenshots: .venv/.dev  ## the README's, of a study that was searched, confirmed and promoted
	$(PY) tools/screenshots.py $(ARGS)

curves: .venv/.dev  ## record the learning curves that bench_search.py replays: ARGS='--data mnist.npz', 30 minutes
	$(PY) tools/record_curves.py $(ARGS)

results: .venv/.dev  ## record the networks that bench_confirmation.py draws from: ARGS=data=mnist, minutes
	$(PY) tools/record_results.py $(ARGS)

density: .venv/.dev  ## how densely the code is packed; nothing checks it
	$(PY) tools/density.py src sweeps tools

detector: .venv/.tools  ## train the detector of what is no digit anew: ARGS='<mnist.npz>', hours; with --tune less
	PYTHONPATH=src $(PY) tools/train_detector.py $(ARGS)

LOCK := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --no-emit-find-links --no-header --quiet
lock:  ## resolve pyproject.toml into all four locks anew (needs uv)
	$(LOCK) --upgrade --output-file requirements.lock
	$(LOCK) --upgrade --extra dev --constraint requirements.lock --output-file requirements-dev.lock
	$(LOCK) --upgrade --extra dev --extra tools --constraint requirements-dev.lock | \
	    sed -n '/^fontpkg/,/^fonttools/{/^fonttools/d;p}' > requirements-tools.lock
	$(LOCK) --upgrade --extra ray --constraint requirements-dev.lock --output-file requirements-ray.lock

clean:  ## remove the environment and caches; runs and studies stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src sweeps tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

INSTALL = if command -v uv >/dev/null; then \
	    uv pip install --quiet --python $(PY) --require-hashes --compile-bytecode -r $<; \
	else \
	    $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r $<; \
	fi

.venv/.ready: requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else \
	    f"this project needs Python 3.11 to 3.13, but $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	@if [ -L .venv ]; then \
	    echo ".venv must be a folder of this project, got a link to $$(readlink .venv), which would be emptied:" \
	         "remove the link" >&2; exit 1; fi
	$(PYTHON) -m venv --clear .venv
	$(INSTALL)
	touch .venv/.ready

.venv/.dev: requirements-dev.lock .venv/.ready
	$(INSTALL)
	touch .venv/.dev

# fonts after handwriting, from which the detector learns letters
.venv/.tools: requirements-tools.lock .venv/.dev
	$(INSTALL)
	touch .venv/.tools

# Ray is 70 MB that neither a study on one machine nor its tests need
.venv/.ray: requirements-ray.lock .venv/.dev
	$(INSTALL)
	touch .venv/.ray
