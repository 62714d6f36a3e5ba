"""The learner on one NVIDIA GPU, within eight minutes: its kernels beside the CPU's, tokens/s and peak memory of updates, and a whole RL step.

`make bench-gpu`, or on a bare machine with torch, transformers and accelerate, without network and without vLLM:

    python -m benchmarks.gpu_wheels wheels           # before, with a network: what is missing there, in a folder of less than 64 MiB
    pip install --no-index --no-deps wheels/*.whl && python -m benchmarks.gpu

Models have published shapes and random weights: speed and memory do not depend on what they know. The peer, prime-rl, reports 6.23 k tokens/s and
23.3 GiB for Qwen3-4B, LoRA rank 16 and 16 k tokens on one H100. What no longer fits into the time is left out, and said to be.
"""

import argparse
import gc
import json
import resource
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from benchmarks.random_base import SHAPES, draw_weights, write_base
from learner.models.lora_policy import Policy
from learner.models.sequence_packing import Branches, pack
from learner.rollouts.rollout_engines import TransformersEngine
from learner.runs.trainer import Prompt, Trainer
from learner.settings import LearnerSettings
from streams.core.events import Message

PEER: Final = {"name": "prime-rl", "shape": "qwen3-4b", "device": "one H100", "tokens": 16_384, "rank": 16, "tokens_per_s": 6230.0, "peak_gib": 23.3}
ATTENTION: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP: Final = ("gate_proj", "up_proj", "down_proj")
EXPERTS: Final = ("gate_up_proj", "down_proj")
LEAST_S: Final = {"kernels": 20.0, "update": 60.0, "step": 60.0}
"""Seconds that must be left for a part to be begun."""


@dataclass(frozen=True)
class Wanted:
    """What is measured, on which device, and until when."""

    device: torch.device
    tokens: int
    rank: int
    updates: int
    until_s: float

    def has_time(self, part: str) -> bool:
        return time.monotonic() + LEAST_S[part] < self.until_s


def settings_for(shape: str, rank: int, **more: Any) -> LearnerSettings:
    """LoRA on attention and on all experts, or on all matrices of a dense model."""
    mixture = "num_experts" in SHAPES[shape]
    given: dict[str, Any] = {"rank": rank, "alpha": 2.0 * rank, "attention_targets": ATTENTION if mixture else (*ATTENTION, *MLP),
                             "expert_targets": EXPERTS if mixture else (), "expert_rank": min(rank, 8) if mixture else 0, "dtype": "bfloat16",
                             "recompute_activations": True}  # fmt: skip
    return LearnerSettings(**given | more)


def policy_of(shape: str, settings: LearnerSettings, device: torch.device) -> Policy:
    """A policy on a base of this shape with random weights, drawn on the device."""
    with tempfile.TemporaryDirectory() as folder:
        write_base(shape, Path(folder))
        policy = Policy(Path(folder), settings, device)
        draw_weights(policy.causal_lm, policy.parameters)
    return policy


def kernels(wanted: Wanted) -> list[dict[str, Any]]:
    """Log-probabilities and the adapter's gradients of small models on the device beside those of the CPU in float32, of the same weights."""
    rows = [Branches((5, 6, 7, 8, 9), tuple(tuple(range(start, start + 12)) for start in (20, 40, 60))), Branches((3,), ((4, 5, 6, 7),))]
    found = []
    for shape in ("tiny", "tiny-mixture"):
        exact = policy_of(shape, settings_for(shape, 8, dtype="float32", recompute_activations=False), torch.device("cpu"))
        for dtype in ("float32", "bfloat16"):
            own = policy_of(shape, settings_for(shape, 8, dtype=dtype, recompute_activations=False), wanted.device)
            _copy_weights(exact, own)
            (expected, slopes), (got, own_slopes) = (_scored(each, rows) for each in (exact, own))
            found.append({
                "shape": shape, "dtype": dtype, "largest_logprob_gap": float((got - expected).abs().max()),
                "least_cosine": min(float(torch.cosine_similarity(own_slopes[name], slope, dim=0)) for name, slope in slopes.items()),
                "median_error": max(float(_median_error(own_slopes[name], slope)) for name, slope in slopes.items()),
            })  # fmt: skip
    return found


def update(wanted: Wanted, shape: str) -> dict[str, Any]:
    """Tokens/s and peak memory of updates on one sequence."""
    _clear(wanted.device)
    began = time.perf_counter()
    policy = policy_of(shape, settings_for(shape, wanted.rank), wanted.device)
    made_s = time.perf_counter() - began
    optimizer = torch.optim.AdamW(policy.parameters.values(), lr=1e-4)
    seconds: list[float] = []
    for seed in range(wanted.updates + 1):
        if seed > 1 and time.monotonic() + 2 * seconds[-1] > wanted.until_s:
            break
        seconds.append(_update(policy, optimizer, wanted.tokens, seed))
    timed = seconds[1:] or seconds
    told = {"shape": shape, "tokens": wanted.tokens, "rank": wanted.rank, "updates": len(timed), "made_s": made_s,
            "tokens_per_s": wanted.tokens * len(timed) / sum(timed), "peak_gib": _peak_bytes(wanted.device) / 2**30}  # fmt: skip
    if shape == PEER["shape"] and wanted.tokens == PEER["tokens"] and "H100" in _name(wanted.device):
        told["ratios"] = {name: told[name] / PEER[name] for name in ("tokens_per_s", "peak_gib")}  # type: ignore[operator]
    return told


def step(wanted: Wanted, shape: str) -> dict[str, Any]:
    """One whole RL step after a warm-up: rollouts by the trainer's own weights, rewards by a plain function, and the update."""
    _clear(wanted.device)
    tiny = shape.startswith("tiny")
    settings = settings_for(shape, wanted.rank, engine="transformers", prompts_per_step=2 if tiny else 8, samples_per_prompt=4 if tiny else 8,
                            max_output_tokens=8 if tiny else 128, microbatch_tokens=256 if tiny else 16_384, kl_coefficient=0.02)  # fmt: skip
    policy = policy_of(shape, settings, wanted.device)
    trainer = Trainer(policy, TransformersEngine(policy), settings)
    prompts: list[Prompt] = [(Message(role="user", content=f"Say something about the number {n}."),) for n in range(settings.prompts_per_step)]
    for _ in range(2):
        result = trainer.step(prompts, lambda pairs: [float(len(answer) % 7) for _, answer in pairs])
    phases = {name: result.metrics[name] for name in ("rollout_s", "score_s", "train_s", "rollout_tokens_per_s", "train_tokens_per_s")}
    return {"shape": shape, "rollouts": len(result.rollouts), **phases, "engine_ratio": result.metrics["engine_ratio_mean"],
            "peak_gib": _peak_bytes(wanted.device) / 2**30}  # fmt: skip


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["qwen3-4b", "olmoe-1b-7b", "qwen3-30b-a3b"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=16_384, help="of the one sequence in an update")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --shapes tiny tiny-mixture --device cpu shows that the benchmark runs")
    disable_progress_bar()
    wanted = Wanted(device, options.tokens, options.rank, options.updates, time.monotonic() + 60 * options.minutes)
    told: dict[str, Any] = {"at": datetime.now(UTC).isoformat(), "device": _name(device), "torch": torch.__version__, "peer": PEER, "left_out": []}
    told["kernels"] = kernels(wanted)
    for row in told["kernels"]:
        print(f"{row['shape']:13} {row['dtype']:8} beside the CPU: logprobs within {row['largest_logprob_gap']:.2g} nats, gradients' cosine at least"
              f" {row['least_cosine']:.4f}, median error {row['median_error']:.2%}")  # fmt: skip
    told["updates"], told["steps"] = [], []
    for shape in options.shapes:
        if not wanted.has_time("update"):
            told["left_out"].append(f"updates of {shape}: no time")
            continue
        try:
            told["updates"].append(row := update(wanted, shape))
        except torch.OutOfMemoryError as error:
            told["left_out"].append(f"updates of {shape}: {str(error).splitlines()[0]}")
            continue
        print(f"{shape} on {told['device']}, {row['tokens']} tokens: {row['tokens_per_s']:.0f} tokens/s, peak {row['peak_gib']:.1f} GiB")
        if "ratios" in row:
            print(f"of prime-rl's figures: {row['ratios']['tokens_per_s']:.2f} of the tokens/s, {row['ratios']['peak_gib']:.2f} of the memory")
    for shape in options.shapes[:2]:
        if not wanted.has_time("step"):
            told["left_out"].append(f"a step of {shape}: no time")
            continue
        told["steps"].append(row := step(wanted, shape))
        print(f"{shape}: a step of {row['rollouts']} rollouts: sampling {row['rollout_s']:.1f} s ({row['rollout_tokens_per_s']:.0f} tokens/s),"
              f" training {row['train_s']:.1f} s ({row['train_tokens_per_s']:.0f} tokens/s)")  # fmt: skip
    for sentence in told["left_out"]:
        print(f"left out: {sentence}")
    options.out.write_text(json.dumps(told, indent=1) + "\n")
    print(f"written to {options.out}")


def _update(policy: Policy, optimizer: torch.optim.Optimizer, tokens: int, seed: int) -> float:
    """Seconds of one update on one sequence."""
    chance = torch.Generator().manual_seed(seed)
    ids = torch.randint(policy.causal_lm.config.vocab_size, (tokens,), generator=chance).tolist()
    _wait(policy.device)
    began = time.perf_counter()
    packed = pack([Branches((ids[0],), (tuple(ids[1:]),))], 0, policy.device)
    advantages_BT = torch.randn(packed.mask_BT.shape, generator=chance).to(policy.device)
    (-(policy.stats(packed).logprobs_BT * advantages_BT).mean()).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    _wait(policy.device)
    return time.perf_counter() - began


def _scored(policy: Policy, rows: list[Branches]) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities, and the gradients of their sum, in float32 on the CPU."""
    packed = pack(rows, 0, policy.device)
    logprobs_BT = policy.stats(packed).logprobs_BT
    found = torch.autograd.grad(logprobs_BT.sum(), list(policy.parameters.values()))
    slopes = {name: slope.float().cpu().flatten() for name, slope in zip(policy.parameters, found, strict=True)}
    return logprobs_BT[packed.mask_BT].detach().float().cpu(), slopes


def _copy_weights(source: Policy, target: Policy) -> None:
    """Give both the same weights: those of the source, rounded to the target's precision."""
    with torch.no_grad():
        for (name, own), (_, its) in zip(source.causal_lm.named_parameters(), target.causal_lm.named_parameters(), strict=True):
            its.copy_(own.to(its.device))
            if name not in target.parameters:
                own.copy_(its.float().cpu())


def _median_error(found: Tensor, expected: Tensor) -> Tensor:
    near = expected.abs() > 0.01 * expected.abs().max()
    return ((found - expected).abs() / expected.abs())[near].median()


def _clear(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
