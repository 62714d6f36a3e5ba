"""The arithmetic of memory beside what a training pass takes on this CPU, by peak resident memory of child processes. `python -m benchmarks.memory`.

Each child notes its peak, loads a base of random weights, takes one update as the learner does, and notes its peak again. The difference is compared
with the arithmetic's weights, activations, head, gradients and optimizer. The pages of a weights file that is read count as resident too.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from infra.local.part_process import base_folder
from infra.planner import memory_arithmetic as arithmetic
from infra.planner.memory_arithmetic import GIB, AdapterShape
from infra.planner.model_shape import ModelShape, model_shape_in
from infra.settings.config import load

MIB: Final = 2**20


@dataclass(frozen=True)
class Case:
    """A base's configuration, and one pass over it."""

    name: str
    config: dict[str, Any]
    prompt: int
    outputs: int
    output: int
    recompute: bool = False
    dtype: str = "bfloat16"

    @property
    def tokens(self) -> int:
        return self.prompt + self.outputs * self.output


QWEN: Final = {"model_type": "qwen3", "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8,
               "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 32_000, "tie_word_embeddings": True}  # fmt: skip
MIXTURE: Final = {"model_type": "qwen3_moe", "hidden_size": 512, "intermediate_size": 1536, "moe_intermediate_size": 256, "num_hidden_layers": 8,
                  "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "num_experts": 16, "num_experts_per_tok": 4,
                  "vocab_size": 32_000, "tie_word_embeddings": False}  # fmt: skip
CASES: Final = (
    Case("dense, 41 M", QWEN, 512, 4, 512),
    Case("dense, 41 M, recomputed", QWEN, 512, 4, 512, recompute=True),
    Case("dense, 41 M, float32", QWEN, 512, 4, 512, dtype="float32"),
    Case("mixture, 90 M", MIXTURE, 512, 4, 512),
    Case("mixture, 90 M, recomputed", MIXTURE, 512, 4, 512, recompute=True),
)


def predicted(shape: ModelShape, case: Case, rank: int) -> tuple[int, int]:
    """Bytes of the weights, and of one update beside them."""
    width = 2 if case.dtype == "bfloat16" else 4
    trained = arithmetic.adapter_weights(shape, AdapterShape(rank, routed=("gate_up_proj", "down_proj") if shape.experts > 1 else ()))
    rows = min(1024, case.outputs * case.output)
    update = arithmetic.activation_bytes(shape, case.tokens, case.recompute, width) + arithmetic.head_bytes(shape, rows, width)
    return shape.weights * width, update + trained * (arithmetic.ADAPTER_BYTES + arithmetic.CAST_BYTES)


def measured(case: Case, folder: Path) -> tuple[int, int, ModelShape]:
    """The same of a child process, from its peak resident memory; and the shape."""
    done = subprocess.run([sys.executable, "-P", "-m", "benchmarks.memory", "--child", str(folder), json.dumps(case.__dict__)], capture_output=True,
                          text=True, check=True)  # fmt: skip
    told = json.loads(done.stdout.splitlines()[-1])
    return told["weights"], told["update"], model_shape_in(folder)


def write_base(case: Case, folder: Path) -> None:
    """A base with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    given = dict(case.config)
    config = AutoConfig.for_model(given.pop("model_type"), **given)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, case.dtype))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    torch.set_default_dtype(before)
    tiny = base_folder(load(None, ("policy.base=tiny",), {}).policy)
    AutoTokenizer.from_pretrained(str(tiny), local_files_only=True).save_pretrained(folder)


def child(folder: Path, case: Case) -> None:
    """Take one update and print what it took."""
    import torch

    from learner.models.lora_policy import Policy
    from learner.models.sequence_packing import Branches, pack
    from learner.settings import LearnerSettings

    torch.set_num_threads(1)
    targets = ("gate_up_proj", "down_proj") if "num_experts" in case.config else ()
    settings = LearnerSettings(dtype=case.dtype, recompute_activations=case.recompute, expert_layout="plain", expert_targets=targets,
                               attention_targets=("q_proj", "k_proj", "v_proj", "o_proj"))  # fmt: skip
    before = _peak()
    policy = Policy(folder, settings)
    loaded = _peak()
    chance = torch.Generator().manual_seed(0)
    ids = torch.randint(30_000, (case.tokens,), generator=chance).tolist()
    outputs = tuple(tuple(ids[case.prompt + n * case.output : case.prompt + (n + 1) * case.output]) for n in range(case.outputs))
    optimizer = torch.optim.AdamW(policy.parameters.values())
    policy.stats(pack([Branches(tuple(ids[: case.prompt]), outputs)], 0)).logprobs_BT.sum().backward()
    optimizer.step()
    print(json.dumps({"weights": loaded - before, "update": _peak() - loaded}))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "CASE"), help="for its own use")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/memory.json"))
    options = parser.parse_args()
    if options.child:
        child(Path(options.child[0]), Case(**json.loads(options.child[1])))
        return
    rows = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            write_base(case, Path(scratch))
            weights, update, shape = measured(case, Path(scratch))
        told = predicted(shape, case, 8)
        rows.append({"name": case.name, "tokens": case.tokens, "taken": weights + update, "predicted": told})
        print(f"{case.name:28} {case.tokens} tokens: {(weights + update) / MIB:6.0f} MiB, by arithmetic {sum(told) / MIB:6.0f}"
              f" ({sum(told) / (weights + update):.2f}), of which weights {told[0] / MIB:.0f}")  # fmt: skip
    options.out.write_text(json.dumps({"rows": rows, "gib": GIB}, indent=1) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
