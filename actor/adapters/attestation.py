"""The proof that a replica serves exactly one adapter: its logprobs on fixed probes against those that the learner stored."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from actor.settings import ActorSettings
from streams.core.errors import BadArtifact
from streams.core.events import Finite

PROBES = "probes.json"


class AttestationProbe(BaseModel):
    """A fixed prompt and answer, and what the learner's weights said of the answer's tokens, in nats."""

    model_config = ConfigDict(frozen=True)

    prompt_ids: Annotated[tuple[int, ...], Field(min_length=1)]
    output_ids: Annotated[tuple[int, ...], Field(min_length=1)]
    adapter_logprobs: tuple[Finite, ...]
    base_logprobs: tuple[Finite, ...]

    @model_validator(mode="after")
    def _one_logprob_per_token(self) -> "AttestationProbe":
        if not len(self.output_ids) == len(self.adapter_logprobs) == len(self.base_logprobs):
            raise ValueError("output_ids, adapter_logprobs and base_logprobs differ in length")
        return self


class _Probes(BaseModel):
    probes: Annotated[tuple[AttestationProbe, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Verdict:
    """What the probes say. Gaps are mean absolute differences in nats a token."""

    passed: bool
    reason: str
    learner_gap: float
    base_gap: float


def read_probes(folder: Path) -> tuple[AttestationProbe, ...]:
    """The probes stored with an adapter. Raises BadArtifact."""
    try:
        return _Probes.model_validate(json.loads((folder / PROBES).read_bytes())).probes
    except FileNotFoundError:
        raise BadArtifact(f"the adapter has no {PROBES}: it cannot be attested") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, ValidationError) as error:
        raise BadArtifact(f"{PROBES} is not what it should be: {str(error)[:500]}") from None


def judge(replica_logprobs: Sequence[Sequence[float]], probes: Sequence[AttestationProbe], settings: ActorSettings) -> Verdict:
    """Compare this replica's logprobs of each probe's output with the learner's, with the adapter and without.

    Near the learner's alone does not do: a small adapter is near the base too, and a replica that serves the base in its
    place must not pass. So the step that this replica took from the learner's base is projected on the learner's own step:
    share = <replica - base, adapter - base> / |adapter - base|², which is 1 for the adapter and 0 for the base, and in which
    the noise of different kernels averages out over tokens. The share counts where the learner's step is above that noise.
    """
    replica = [value for row in replica_logprobs for value in row]
    adapter = [value for probe in probes for value in probe.adapter_logprobs]
    base = [value for probe in probes for value in probe.base_logprobs]
    if len(replica) != len(adapter) or not all(map(math.isfinite, replica)):
        return Verdict(False, f"the replica gave {len(replica)} logprobs of {len(adapter)} tokens, or not all finite", math.inf, math.inf)
    count = len(adapter)
    learner_gap = sum(abs(r - a) for r, a in zip(replica, adapter, strict=True)) / count
    base_gap = sum(abs(r - b) for r, b in zip(replica, base, strict=True)) / count
    step = [a - b for a, b in zip(adapter, base, strict=True)]
    square = sum(s * s for s in step)
    if learner_gap > settings.max_learner_gap_nats:
        reason = f"{learner_gap:.4f} nats from the learner, more than actor.max_learner_gap_nats = {settings.max_learner_gap_nats}"
        return Verdict(False, reason, learner_gap, base_gap)
    if math.sqrt(square / count) > settings.noise_nats:
        share = sum((r - b) * s for r, b, s in zip(replica, base, step, strict=True)) / square
        least = settings.min_adapter_share
        if not least <= share <= 2 - least:
            reason = f"shows {share:.2f} of the adapter's step from the base, not {least} to {2 - least:.2f} (actor.min_adapter_share)"
            return Verdict(False, reason, learner_gap, base_gap)
    return Verdict(True, "attested", learner_gap, base_gap)
