"""Exports an adapter merged into its base, as a Hugging Face folder that needs neither PEFT nor Tidemill, with its lineage.

The sums are made in float32, and the folder is loaded again with transformers before it gets its name: what it says of the adapter's probe tokens is
compared with what the learner said when it published the adapter.
"""

import json
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from learner.models.lora_policy import merged
from streams.artifacts.artifact_store import ArtifactStore, fingerprint
from streams.core.errors import BadArtifact, ConfigError
from streams.core.events import AdapterVersion

MOST_NATS = 0.01
"""Largest difference of a probe token's log-probability in float32 that is put down to the order of sums."""
LINEAGE, CARD = "lineage.json", "README.md"


@dataclass(frozen=True)
class MergedFolder:
    """What was written, and how near it is to the adapter."""

    folder: Path
    parameters: int
    tokens: int
    """Probe tokens compared."""
    gap_nats: float
    """Largest difference of their log-probabilities from those that the learner published."""
    step_nats: float
    """Mean absolute difference between adapter and base on them: what the adapter changes."""


def export(chain: Sequence[AdapterVersion], store: ArtifactStore, base: Path, out: Path, dtype: Literal["float32", "bfloat16"]) -> MergedFolder:
    """Write the last adapter of a lineage (oldest first) into ``out``.

    Raises ConfigError when ``out`` exists or the base is another one, BadArtifact when the folder does not say what the adapter says.
    """
    adapter = chain[-1]
    if out.exists():
        raise ConfigError(f"{out} exists; name a new folder")
    if (here := fingerprint(base)) != adapter.base_fingerprint:
        raise ConfigError(f"the base here has fingerprint {here[:12]}, {adapter.name} was trained on {adapter.base_fingerprint[:12]} (policy.base)")
    incoming = out.parent / f".{out.name}.{uuid.uuid4().hex}"
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = store.fetch(adapter.artifact, Path(scratch) / "adapter")
            probes = json.loads((folder / "probes.json").read_text())["probes"]
            whole = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32, local_files_only=True)
            model = merged(whole, folder).to(getattr(torch, dtype))
        model.save_pretrained(str(incoming))
        AutoTokenizer.from_pretrained(str(base), local_files_only=True).save_pretrained(str(incoming))
        parameters = sum(weight.numel() for weight in model.parameters())
        del model
        found = MergedFolder(out, parameters, *_compared(incoming, probes))
        if dtype == "float32" and found.gap_nats > MOST_NATS:
            raise BadArtifact(
                f"merged {adapter.name} differs by {found.gap_nats:.3f} nats from what was published (at most {MOST_NATS}): nothing is written"
            )
        (incoming / LINEAGE).write_text(json.dumps([each.model_dump(mode="json", exclude_none=True) for each in chain], indent=1) + "\n")
        (incoming / CARD).write_text(_card(chain, base, dtype, found))
        incoming.rename(out)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    return found


@torch.inference_mode()
def _compared(folder: Path, probes: Sequence[dict[str, Any]]) -> tuple[int, float, float]:
    """Tokens, largest gap to the adapter, and the adapter's mean step, of the folder as transformers loads it."""
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto", local_files_only=True).eval()
    gaps, steps = [0.0], [0.0]
    for probe in probes:
        prompt, output = probe["prompt_ids"], probe["output_ids"]
        logits_TV = model(input_ids=torch.tensor([[*prompt, *output]])).logits[0, len(prompt) - 1 : -1].float()
        logprobs = torch.log_softmax(logits_TV, -1)[range(len(output)), output].tolist()
        gaps += [abs(ours - theirs) for ours, theirs in zip(logprobs, probe["adapter_logprobs"], strict=True)]
        steps += [abs(adapter - base) for adapter, base in zip(probe["adapter_logprobs"], probe["base_logprobs"], strict=True)]
    return len(gaps) - 1, max(gaps), sum(steps) / max(1, len(steps) - 1)


def _card(chain: Sequence[AdapterVersion], base: Path, dtype: str, found: MergedFolder) -> str:
    """The model card: what it is made of, and how near it is."""
    adapter = chain[-1]
    rows = [
        f"| {each.name} | {each.step} | {each.reward_model_version} | {each.created_at:%Y-%m-%d %H:%M} UTC | `{each.artifact.sha256[:12]}` |"
        for each in chain
    ]
    return "\n".join([
        "---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [tidemill]", "---", "",
        f"# {adapter.name}, merged", "",
        f"The base `{base.name}` (fingerprint `{adapter.base_fingerprint}`) with the LoRA adapter {adapter.name} (rank {adapter.rank}, on",
        f"{', '.join(adapter.targets)}) added to its weights in float32 and stored in {dtype}: {found.parameters / 1e6:.0f} M parameters.",
        "It was learned from people's feedback. Its licence is that of the base and of what it learned from.", "",
        f"Loaded with transformers, it differs from the adapter's published log-probabilities by at most {found.gap_nats:.2g} nats on",
        f"{found.tokens} probe tokens. The adapter itself moves them by {found.step_nats:.2g} nats on average.", "",
        "## Lineage", "",
        "| adapter | step | reward model | published | artifact |", "|---|---|---|---|---|", *rows, "",
        f"`{LINEAGE}` holds the events as they were published, with the offsets of the labels that each reward model had seen.", "",
    ])  # fmt: skip
