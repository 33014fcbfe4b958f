# Works with GNU make 3.81, which macOS ships: no .ONESHELL, no grouped targets. .ci/venv does what takes more than a line.
.DEFAULT_GOAL := help
.PHONY: help quickstart test test-clients test-agents lint format bench bench-audit bench-bodies soak soak-histories fuzz-folders test-architectures clean

PYTEST_ARGS ?=
BENCH_ARGS ?=
SOAK_ARGS ?=
AGENTS_ARGS ?=

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

quickstart: ## install, fetch a small model, start the daemon, ask it a question; safe to repeat
	@goal=$@ .ci/venv
	@.venv/bin/mlxctl quickstart

test: ## run every test, on up to four cores (PYTEST_ARGS="tests/pool -k evict" runs some, PYTEST_ARGS="-n 0 --pdb" one by one)
	@goal=$@ .ci/venv test
	@.venv/bin/python -m tests.support.starter
	@.venv/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal $(PYTEST_ARGS)

test-clients: ## drive a daemon with the npm packages openai and @anthropic-ai/sdk, which are kept in ~/.cache/mlxd-tests
	@goal=$@ .ci/venv clients
	@.venv/bin/python -m tests.clients

test-agents: ## drive a daemon with Claude Code, Codex and opencode, which are kept in ~/.cache/mlxd-tests (AGENTS_ARGS="codex --restart")
	@goal=$@ .ci/venv clients
	@.venv/bin/python -m tests.agents $(AGENTS_ARGS)

lint: ## ruff, mypy --strict, import-linter; then the lines and files of each package
	@goal=$@ .ci/venv test
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	@for package in mlxd mlxd/*/ mlxctl tests; do \
		[ "$$package" = tests ] || [ -f $$package/__init__.py ] || continue; \
		find $$package -name '*.py' -exec cat {} + | wc -l | tr '\n' ' '; echo "lines, $$(find $$package -name '*.py' | wc -l | tr -d ' ') files in $$package"; \
	done

format: ## let ruff set the layout and fix what it can
	@goal=$@ .ci/venv test
	.venv/bin/ruff check --fix-only
	.venv/bin/ruff format

bench: ## compare with mlx_lm.server and a bare BatchGenerator; writes tests/bench/RESULTS.md
	@goal=$@ .ci/venv test
	@.venv/bin/python -m tests.bench $(BENCH_ARGS)

bench-audit: ## a request log of a million rows: insert rate, latency of list and stats (BENCH_ARGS="--rows 100000")
	@goal=$@ .ci/venv test
	@.venv/bin/python -m tests.bench.audit $(BENCH_ARGS)

bench-bodies: ## twenty request bodies of the largest size at once next to a stream: memory, and the stream's longest gap
	@goal=$@ .ci/venv test
	@.venv/bin/python -m tests.bench.bodies

soak: ## twenty minutes of random traffic, changes and bad neighbors on one daemon (SOAK_ARGS="--minutes 60 --seed 7")
	@goal=$@ .ci/venv test
	@.venv/bin/python -m tests.soak $(SOAK_ARGS)

soak-histories: ## live ten thousand random histories of the pool, and long ones of the prompt cache (half an hour)
	@goal=$@ .ci/venv test
	@.venv/bin/python -m pytest --hypothesis-profile=soak tests/pool/test_histories.py tests/pool/test_adapter_histories.py tests/engine/test_reuse_histories.py $(PYTEST_ARGS)

fuzz-folders: ## spoil thousands of model folders beside a model that answers (ten minutes; PYTEST_ARGS="--hypothesis-seed=7")
	@goal=$@ .ci/venv test
	@.venv/bin/python -X faulthandler -m pytest --hypothesis-profile=soak tests/test_hostile_folder.py tests/test_model_folder.py $(PYTEST_ARGS)

test-architectures: ## check every type of model that mlx-lm has in every precision (two minutes)
	@goal=$@ .ci/venv test
	@.venv/bin/python -m pytest tests/engine/architectures.py $(PYTEST_ARGS)

clean: ## remove caches and build output; .venv and models stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.*
	find mlxd mlxctl tests -name __pycache__ -type d -prune -exec rm -rf {} +
