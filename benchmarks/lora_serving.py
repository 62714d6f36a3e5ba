"""What serving adapters costs: vLLM without LoRA beside the same vLLM with ours, one batch of concurrent requests. `make bench-lora-serving`.

Two engines stand side by side, each in a process of its own, and are measured in turn, round after round; a ratio is of one round, and the
median of the rounds is told. Requests go to the engine itself: HTTP and capture, which cost both sides the same, would only draw the ratios
towards 1. Absolute figures are of the machine; the ratios are what counts.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from infra.local.part_process import base_folder
from infra.settings.config import load

SLOTS, MAX_RANK = 8, 16
PEER: Final = "without LoRA"
CASES: Final[dict[str, tuple[str, ...]]] = {
    "LoRA on, base asked": ("",),
    "attention, 1 adapter": ("attention",),
    "experts, 1 adapter": ("experts-0",),
    "experts, half base, half 1 adapter": ("", "experts-0"),
    "experts, 2 adapters": ("experts-0", "experts-1"),
    "experts, 8 adapters": tuple(f"experts-{n}" for n in range(SLOTS)),
}
"""Adapters that the requests of a batch ask for in turn; empty: the base."""
GOAL: Final = 0.8
"""Of the tokens/s without LoRA, with adapters."""


@dataclass(frozen=True)
class Load:
    """One batch."""

    concurrent: int
    tokens: int
    rounds: int
    threads: int


@dataclass(frozen=True)
class Rate:
    """Tokens of one batch; by CPU seconds too, which other work on the machine stretches far less."""

    per_s: float
    per_cpu_s: float


def main() -> None:
    """Measure, print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--concurrent", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of each engine; more than one come to a crawl beside other busy processes")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/lora_serving.json"))
    options = parser.parse_args()
    asked = Load(options.concurrent, options.tokens, options.rounds, options.threads)
    base = base_folder(load(None, (f"policy.base={options.base}",)).policy)
    with tempfile.TemporaryDirectory() as folder:
        spawned = multiprocessing.get_context("spawn")
        writing = spawned.Process(target=write_adapters, args=(base, Path(folder), options.rank))
        writing.start()
        writing.join()
        rates = measure(base, Path(folder), asked)
    ratios = {
        of: {case: _ratio([vars(r)[of] for r in rates[case]], [vars(r)[of] for r in rates[PEER]]) for case in rates} for of in vars(rates[PEER][0])
    }
    print(f"{str(asked.concurrent) + ' requests at once':<40}{'tokens/s':>10}{'ratio':>8}{'a CPU s':>10}{'ratio':>8}")
    for case, found in rates.items():
        figures = ((statistics.median(vars(rate)[of] for rate in found), of_case[case]) for of, of_case in ratios.items())
        print(f"{case:<40}" + "".join(f"{median:>10.0f}{ratio:>8.2f}" for median, ratio in figures))
    machine = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine(), "at": datetime.now(UTC).isoformat()}
    told = {
        "machine": machine,
        "base": options.base,
        "rank": options.rank,
        "load": vars(asked),
        "slots": SLOTS,
        "rates": {case: [vars(rate) for rate in found] for case, found in rates.items()},
        "ratios": ratios,
    }
    options.out.write_text(json.dumps({**told, "goal": GOAL}, indent=1) + "\n")
    print(f"written to {options.out}")


def _ratio(ours: list[float], peers: list[float]) -> float:
    return statistics.median(our / peer for our, peer in zip(ours, peers, strict=True))


def write_adapters(base: Path, folder: Path, rank: int) -> None:
    """One adapter on attention, and as many on attention and experts as there are slots, all of random weights."""
    import torch

    from learner.models.lora_policy import Policy
    from learner.settings import LearnerSettings

    for names, settings in (
        (("attention",), LearnerSettings(rank=rank, expert_targets=())),
        (CASES["experts, 8 adapters"], LearnerSettings(rank=rank)),
    ):
        policy = Policy(base, settings)
        for seed, name in enumerate(names):
            chance = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for weight in policy.parameters.values():
                    weight.copy_(torch.randn(weight.shape, generator=chance) * 0.01)
            policy.save_adapter(folder / name)


def measure(base: Path, adapters: Path, asked: Load) -> dict[str, list[Rate]]:
    """By case, one rate a round."""
    peer, ours = Engine(base, None, asked.threads), Engine(base, adapters, asked.threads)
    rates: dict[str, list[Rate]] = {PEER: [], **{case: [] for case in CASES}}
    try:
        for n in range(-1, asked.rounds):  # the first round loads adapters and is not counted
            for case, found in rates.items():
                rate = (peer if case == PEER else ours).rate(CASES.get(case, ("",)), asked)
                print(f"{'warm-up' if n < 0 else f'round {n + 1}'}: {case}: {rate.per_s:.0f} tokens/s, {rate.per_cpu_s:.0f} a CPU second", flush=True)
                if n >= 0:
                    found.append(rate)
    finally:
        peer.close()
        ours.close()
    return rates


class Engine:
    """A handle on a vLLM in a process of its own."""

    def __init__(self, base: Path, adapters: Path | None, threads: int) -> None:
        spawned = multiprocessing.get_context("spawn")
        self._line, theirs = spawned.Pipe()
        self._process = spawned.Process(target=answer, args=(theirs, base, adapters, threads))
        self._process.start()
        theirs.close()

    def rate(self, names: tuple[str, ...], asked: Load) -> Rate:
        """Of one batch, whose requests ask for these adapters in turn."""
        self._line.send((names, asked))
        return Rate(*self._line.recv())

    def close(self) -> None:
        """End the process."""
        self._line.close()
        self._process.join(timeout=30)
        if self._process.is_alive():
            self._process.kill()


def answer(line: Connection, base: Path, adapters: Path | None, threads: int) -> None:
    """The engine's process: batches are asked for on the line until it is hung up."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1",
                   "OMP_NUM_THREADS": str(threads), "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}  # fmt: skip
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    from reward.families.mixtral_family import MIXTRAL

    lora: dict[str, Any] = {}
    if adapters is not None:
        lora = {
            "enable_lora": True,
            "max_loras": SLOTS + 1,
            "max_lora_rank": MAX_RANK,
            "max_cpu_loras": 2 * SLOTS,
            "lora_target_modules": [*MIXTRAL.lora_modules],
        }
    llm = LLM(model=str(base), dtype="bfloat16", max_model_len=512, enforce_eager=True, disable_log_stats=True, enable_prefix_caching=False, **lora)
    requests = {name: LoRARequest(name, n, str(adapters / name)) for n, name in enumerate(_names(), 1)} if adapters is not None else {}
    while True:
        try:
            names, asked = line.recv()
        except EOFError:
            break
        prompts = [{"prompt_token_ids": [1, *range(100 + n, 130 + n)]} for n in range(asked.concurrent)]
        chosen = [requests.get(names[n % len(names)]) for n in range(asked.concurrent)]
        sampling = SamplingParams(temperature=0.0, max_tokens=asked.tokens, ignore_eos=True, detokenize=False)
        began, computed = time.perf_counter(), time.process_time()
        done = llm.generate(prompts, sampling, lora_request=chosen if adapters is not None else None, use_tqdm=False)
        tokens = sum(len(one.outputs[0].token_ids) for one in done)
        line.send((tokens / (time.perf_counter() - began), tokens / (time.process_time() - computed)))


def _names() -> list[str]:
    return ["attention", *CASES["experts, 8 adapters"]]


if __name__ == "__main__":
    main()
