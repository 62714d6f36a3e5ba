# The front door. `make help` lists every target.
PYTHON ?= python3
BIN := .venv/bin
LOCK ?= infra/build/locks/cpu.txt
UV_VERSION := 0.13.9
RUN := $(BIN)/python -m

.PHONY: help demo demo-tiny test test-slow test-processors test-unit test-operators chaos soak lint bench-reward bench-streams bench-rl bench-rl-algorithms bench-corrections bench-capture bench-swap bench-lora-serving bench-gpu docs lock clean sbom fuzz
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -hE '^[a-z.-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-18s %s\n", $$1, $$2}'

.venv/installed: $(LOCK) pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info[:2] in ((3, 11), (3, 12)), "Tidemill needs Python 3.11 or 3.12: make PYTHON=python3.11 …"'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
# Compiled here, once: without bytecode every process compiles what it imports (vLLM: 6,000 modules), at every start where none may be written.
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps -r $(LOCK)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

.venv: .venv/installed  ## Make .venv with the locked versions (LOCK=infra/build/locks/gpu.txt on an NVIDIA GPU)

demo: .venv/installed  ## Turn the whole ring once with simulated people and write a report (12 minutes; ARGS="--minutes 20")
	$(BIN)/tidemill demo $(ARGS)

demo-tiny: .venv/installed  ## The same with a random 2-layer policy, for a quick look (about 4 minutes)
	$(BIN)/tidemill demo --policy tiny --minutes 5 $(ARGS)

test: .venv/installed  ## Every test, on two cores at a time: unit, contracts, integration (real Kafka, Faust, vLLM, Ray), project, one tiny demo end to end
	$(RUN) pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: .venv/installed  ## What takes long and rarely breaks: several learner processes, a tuned backbone, forks, the GPU benchmark on a CPU
	$(RUN) pytest tests/slow $(ARGS)

test-processors: .venv/installed  ## Claims about learning with ten seeds, in two precisions, on other processors' kernels (half an hour; ARGS="--seeds 3")
	$(RUN) tests.slow.other_processors $(ARGS)

test-unit: .venv/installed  ## The quick ones: no network, no engine, seconds
	$(RUN) pytest tests/unit tests/project $(ARGS)

.venv/operators: .venv/installed infra/build/locks/operators.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r infra/build/locks/operators.txt
	touch $@

test-operators: .venv/operators  ## The operator's guide, alerts, dashboards and console on a real ring, Prometheus and Chromium (Debian's packages)
	command -v prometheus promtool chromium > /dev/null || apt-get install -y --no-install-recommends prometheus chromium fonts-dejavu-core
	$(RUN) pytest tests/operators $(ARGS)

chaos: .venv/installed  ## Killed outboxes, full disks, jumping clocks, broken networks, three nodes; then the log as if nothing had happened (ARGS="-k disk", CHAOS_SEED=2)
	test -e /usr/lib/*/faketime/libfaketimeMT.so.1 || apt-get install -y --no-install-recommends libfaketime
	FUZZ_PROFILE=long $(RUN) pytest tests/simulation tests/chaos --timeout 1200 $(ARGS)

soak: .venv/installed  ## 300,000 events and 1 % poison through outbox, Kafka, join and lake: is memory flat, is nothing lost? (five minutes at most; ARGS="--events 1000000")
	$(RUN) benchmarks.soak $(ARGS)

lint: .venv/installed  ## ruff and mypy --strict
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

.venv/bench: .venv/installed infra/build/locks/bench.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r infra/build/locks/bench.txt
	touch $@

bench-reward: .venv/bench  ## The streaming reward model on judged answers (DATA=judged.jsonl.gz BACKBONE=base/dense; half an hour on two cores)
	$(RUN) benchmarks.reward --data $(DATA) --backbone $(BACKBONE) $(ARGS)

bench-streams: .venv/installed  ## Publish, join, lake and replay beside raw clients and a plain Faust agent (ARGS="--events 50000")
	$(RUN) benchmarks.streams $(ARGS)

bench-rl: .venv/bench  ## Learning beside TRL's GRPOTrainer with PEFT on the same task, in turn (a quarter of an hour on two cores; ARGS="--steps 12")
	$(RUN) benchmarks.rl $(ARGS)

.venv/litellm/installed: .venv/installed infra/build/locks/litellm.txt
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv/litellm
	$(BIN)/uv pip install --quiet --python .venv/litellm/bin/python --no-deps -r infra/build/locks/litellm.txt
	touch $@

bench-capture: .venv/litellm/installed  ## What capture costs: on, off and behind LiteLLM's proxy, on a trivial server and on vLLM with two bases (a quarter of an hour)
	$(RUN) benchmarks.capture --server trivial $(ARGS)
	$(RUN) benchmarks.capture --server tiny --rate 0 $(ARGS)
	$(RUN) benchmarks.capture --server smollm2 --rate 0 --window-s 15 $(ARGS)

bench-rl-algorithms: .venv/installed  ## GRPO, GSPO, CISPO, PPO, KTO and distillation side by side on the tiny base, with a plot
	$(RUN) benchmarks.rl_algorithms $(ARGS)

bench-corrections: .venv/installed  ## Thirty corrections given once: does the next adapter know them in other words? (ARGS="--arms comments")
	$(RUN) benchmarks.corrections $(ARGS)

bench-swap: .venv/installed  ## From publishing an adapter to two replicas attesting and serving it under load, and back (ARGS="--adapters 20")
	$(RUN) benchmarks.swap $(ARGS)

fuzz: .venv/installed  ## Send every decoder and HTTP door what nobody should send (about ten minutes; a short look is part of `make test`)
	FUZZ_PROFILE=long $(RUN) pytest tests/fuzz --timeout 1200 $(ARGS)

sbom: .venv/installed  ## Write sbom.json: every package and jar of this environment, as CycloneDX; fails where it is not the locked one
	$(RUN) infra.build.bill_of_materials sbom.json $(LOCK)

bench-lora-serving: .venv/installed  ## Serving adapters on a CPU beside the same vLLM without LoRA: base, attention, experts, 1, 2 and 8 mixed (five minutes)
	$(RUN) benchmarks.lora_serving $(ARGS)

bench-gpu: .venv/installed  ## The learner on one NVIDIA GPU, 8 minutes: kernels, updates, a step (ARGS="--shapes tiny tiny-mixture --device cpu" to see it run)
	$(RUN) benchmarks.gpu $(ARGS)

docs: .venv/installed  ## Generate the reference pages from the tables in the code
	$(RUN) infra.build.reference_pages docs/reference

lock: .venv/installed  ## Resolve both locks anew from pyproject.toml and infra/build/locks/overrides.txt
	for kind in cpu gpu; do $(BIN)/uv pip compile pyproject.toml --extra $$kind --extra dev --override infra/build/locks/overrides.txt --universal \
	  --python-version 3.11 --no-emit-index-url --no-annotate --no-header --quiet --upgrade -o infra/build/locks/$$kind.txt; done

clean:  ## Remove the environment, runs and caches of this checkout (not the cache per user)
	rm -rf .venv runs build sbom.json *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
