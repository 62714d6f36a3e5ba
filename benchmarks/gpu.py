"""The trainer alone on one GPU: tokens/s and peak memory of LoRA updates on long sequences. `make bench-gpu`.

A model of a known shape with random weights (speed and memory do not depend on what it knows) is trained as the learner trains: forward with
log-probabilities and entropies, backward, AdamW on the adapter; each layer's activations and the head's are computed again in the backward
pass. Needs torch, transformers and peft, no vLLM. The peer, prime-rl, reports 6.23 k tokens/s and 23.3 GiB for Qwen3-4B, LoRA rank 16 and
16 k tokens on one H100.
"""

import argparse
import json
import resource
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from infra.local.part_process import base_folder
from infra.settings.config import load
from learner.models.lora_policy import Policy
from learner.models.sequence_packing import Branches, pack
from learner.settings import LearnerSettings

SHAPES: Final[dict[str, dict[str, int]]] = {
    "qwen3-4b": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
                 "head_dim": 128, "vocab_size": 151_936},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "head_dim": 16, "vocab_size": 1024},
}  # fmt: skip
PEER: Final = {"name": "prime-rl", "shape": "qwen3-4b", "device": "one H100", "tokens": 16_384, "rank": 16, "tokens_per_s": 6230.0, "peak_gib": 23.3}
TARGETS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-4b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=16_384, help="of the one sequence in an update")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--tokenizer", type=Path, help="any; by default the tiny base's, which is built when it is not there")
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--keep-activations", action="store_true", help="do not compute activations again in the backward pass")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --shape tiny --device cpu shows that the benchmark runs")
    settings = LearnerSettings(rank=options.rank, alpha=2.0 * options.rank, attention_targets=TARGETS, expert_targets=(),
                               recompute_activations=not options.keep_activations)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        policy = Policy(_random_base(options.shape, options.tokenizer, Path(folder)), settings, device)
    seconds = [_update(policy, settings, options.tokens, seed) for seed in range(options.updates + 1)][1:]
    told: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "shape": options.shape,
        "tokens": options.tokens,
        "rank": options.rank,
        "recomputed": settings.recompute_activations,
        "tokens_per_s": options.tokens * len(seconds) / sum(seconds),
        "peak_gib": _peak_bytes(device) / 2**30,
        "peer": PEER,
    }
    print(f"{told['shape']} on {told['device']}, {told['tokens']} tokens: {told['tokens_per_s']:.0f} tokens/s, peak {told['peak_gib']:.1f} GiB")
    if options.shape == PEER["shape"] and "H100" in told["device"]:
        told["ratios"] = {name: told[name] / PEER[name] for name in ("tokens_per_s", "peak_gib")}
        print(f"of prime-rl's reported figures: {told['ratios']['tokens_per_s']:.2f} of the tokens/s, {told['ratios']['peak_gib']:.2f} of the memory")
    options.out.write_text(json.dumps(told, indent=1) + "\n")
    print(f"written to {options.out}")


def _random_base(shape: str, tokenizer: Path | None, folder: Path) -> Path:
    """A base of this shape with random weights."""
    config = Qwen3Config(**SHAPES[shape], tie_word_embeddings=True, max_position_embeddings=1 << 17)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        model = Qwen3ForCausalLM(config)
        torch.set_default_dtype(before)
    model.save_pretrained(folder)
    given = tokenizer or base_folder(load(None, ("policy.base=tiny",)).policy)
    AutoTokenizer.from_pretrained(str(given), local_files_only=True).save_pretrained(folder)
    return folder


def _update(policy: Policy, settings: LearnerSettings, tokens: int, seed: int) -> float:
    """Seconds of one update on one sequence."""
    chance = torch.Generator().manual_seed(seed)
    ids = torch.randint(policy.causal_lm.config.vocab_size, (tokens,), generator=chance).tolist()
    optimizer = torch.optim.AdamW(policy.parameters.values(), lr=settings.learning_rate)
    _wait(policy.device)
    began = time.perf_counter()
    packed = pack([Branches((ids[0],), (tuple(ids[1:]),))], 0, policy.device)
    advantages_BT = torch.randn(packed.mask_BT.shape, generator=chance).to(policy.device)
    (-(policy.stats(packed).logprobs_BT * advantages_BT).mean()).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    _wait(policy.device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
