"""The proof that a replica serves exactly one adapter: its logprobs on fixed probes against those that the learner stored."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from actor.adapters.adapter_effect import Array, Readings, Share, shares, stray_nats
from actor.settings import ActorSettings
from streams.core.errors import BadArtifact
from streams.core.events import Finite

PROBES = "probes.json"
STRAY_NOISES = 3.0
"""The part of a replica's step that the learner's step does not explain is suspicious above this many times the base's noise."""
SWALLOWED_NOISES = 4.0
"""A part of the step below this many times the base's noise can vanish by rounding. Engines add an adapter's output to bfloat16 numbers; what is
less than half of their last digit is lost in the same way at each token, so averaging does not bring it back."""
Logprobs = Sequence[Sequence[float]]
"""One row for each probe, one value for each of its output tokens, in nats."""


class AttestationProbe(BaseModel):
    """A fixed prompt and answer, with the learner's log-probabilities of the answer's tokens, in nats."""

    model_config = ConfigDict(frozen=True)

    prompt_ids: Annotated[tuple[int, ...], Field(min_length=1)]
    output_ids: Annotated[tuple[int, ...], Field(min_length=1)]
    adapter_logprobs: tuple[Finite, ...]
    base_logprobs: tuple[Finite, ...]
    without: dict[str, tuple[Finite, ...]] = {}
    """The same without one group of the adapter's tensors, by the group's name."""
    parent_logprobs: tuple[Finite, ...] = ()
    """The same for the adapter published before; empty when the learner did not have it."""

    @model_validator(mode="after")
    def _one_logprob_per_token(self) -> "AttestationProbe":
        rows = [self.adapter_logprobs, self.base_logprobs, *self.without.values(), self.parent_logprobs or self.base_logprobs]
        if {len(row) for row in rows} != {len(self.output_ids)}:
            raise ValueError("output_ids and the logprobs of its tokens differ in length")
        return self


class AdapterProbes(BaseModel):
    """Reference values that the learner stored with an adapter, for attestation."""

    model_config = ConfigDict(frozen=True)

    probes: Annotated[tuple[AttestationProbe, ...], Field(min_length=1)]
    precision: Literal["bfloat16", "float32"] | None = None
    """Precision of the learner; unknown for old adapters."""
    tensors: dict[str, Finite] = {}
    """Euclidean norm of each exported tensor, by its name in the file; empty for old adapters."""

    @model_validator(mode="after")
    def _all_probes_leave_out_the_same(self) -> "AdapterProbes":
        if len({(tuple(sorted(probe.without)), bool(probe.parent_logprobs)) for probe in self.probes}) > 1:
            raise ValueError("the probes differ in the groups that they leave out")
        return self


@dataclass(frozen=True)
class Verdict:
    """The result of the probes. Gaps are mean absolute differences in nats per token."""

    outcome: Literal["attested", "refused", "cannot tell"]
    reason: str
    learner_gap: float = math.inf
    base_gap: float = math.inf
    noise_nats: float = math.inf
    share: Share | None = None
    """Share of the whole step from the base."""
    proof: Literal["answers", "tensors"] | None = None
    """The proof: answers, or tensors when the answers are too noisy. None: not proved."""

    @property
    def passed(self) -> bool:
        """True when the adapter may be served."""
        return self.proof is not None


def read_probes(folder: Path) -> AdapterProbes:
    """The probes stored with an adapter. Raises BadArtifact."""
    try:
        return AdapterProbes.model_validate(json.loads((folder / PROBES).read_bytes()))
    except FileNotFoundError:
        raise BadArtifact(f"the adapter has no {PROBES}: it cannot be attested") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, ValidationError) as error:
        raise BadArtifact(f"{PROBES} cannot be used: {str(error)[:500]}") from None


def judge(replica_adapter: Logprobs, replica_base: Logprobs, known: AdapterProbes, settings: ActorSettings, placed: bool = False) -> Verdict:
    """Compare this replica's log-probabilities of each probe's output, with and without the adapter, to the learner's.

    Being near the learner is not a proof: a small adapter is also near the base. The replica must show each part of the learner's step, and the
    interval of each share must lie within bounds that exclude both 0 and twice the step (actor/adapters/adapter_effect.py). An interval outside
    means that the replica serves something else; one across a bound means that the probes cannot tell. ``placed``: the engine holds every tensor
    of the file. Then a small part that does not show is not proof of its absence: it may have vanished by rounding.
    """
    readings = _readings(replica_adapter, replica_base, known)
    if readings is None:
        given = [sum(map(len, rows)) for rows in (replica_adapter, replica_base)]
        wanted = sum(len(probe.output_ids) for probe in known.probes)
        return Verdict("refused", f"the replica gave {given[0]} and {given[1]} logprobs of {wanted} tokens, or not all finite")
    return judge_readings(readings, settings, placed)


def judge_readings(readings: Readings, settings: ActorSettings, placed: bool = False) -> Verdict:
    """The same, for aligned and finite log-probabilities."""
    found = shares(readings)
    learner_gap = float(np.mean(np.abs(readings.replica_adapter_N - readings.adapter_N)))
    base_gap = float(np.mean(np.abs(readings.replica_adapter_N - readings.base_N)))

    def verdict(outcome: Literal["attested", "refused", "cannot tell"], reason: str) -> Verdict:
        return Verdict(outcome, reason, learner_gap, base_gap, readings.noise_nats, found[0], "answers" if outcome == "attested" else None)

    least, most, largest_gap = settings.min_adapter_share, 2 - settings.min_adapter_share, settings.max_learner_gap_nats
    bounds = f"not {least:g} to {most:g} (actor.min_adapter_share)"
    noise = f"noise {readings.noise_nats:.2g} nats a token, step {readings.step_nats:.2g}"
    base_noise = float(np.mean(np.abs(readings.replica_base_N - readings.base_N)))
    if base_noise > largest_gap:
        reason = f"the base alone is {base_noise:.4f} nats from the learner's, more than actor.max_learner_gap_nats = {largest_gap}"
        return verdict("refused", reason)
    swallowed = SWALLOWED_NOISES * readings.noise_nats if placed else 0.0
    for index, share in enumerate(found):
        maybe_absent = index == 0 and share.low <= 0  # at least something of the whole step must show
        if share.low > most or (share.high < least and (maybe_absent or share.size_nats >= swallowed)):
            return verdict("refused", f"shows {_told(share)} of {share.part}, {bounds}; {noise}")
    if learner_gap > largest_gap:
        return verdict("refused", f"{learner_gap:.4f} nats from the learner, more than actor.max_learner_gap_nats = {largest_gap}")
    stray = stray_nats(readings)
    if stray > (1 - least) * readings.step_nats and stray > STRAY_NOISES * math.sqrt(2) * readings.noise_nats:
        return verdict("refused", f"differs from the base by {stray:.4f} nats per token that the adapter does not explain; {noise}")
    unsure = [share for share in found if not least <= share.low <= share.high <= most]
    if unsure:
        told = " and ".join(f"{_told(share)} of {share.part}" for share in unsure)
        return verdict("cannot tell", f"the probes cannot tell: they show {told}; {noise}")
    return verdict("attested", "attested")


def _told(share: Share) -> str:
    return f"{share.estimate:.2f} ({share.low:.2f} to {share.high:.2f})"


def _readings(replica_adapter: Logprobs, replica_base: Logprobs, known: AdapterProbes) -> Readings | None:
    """All values aligned by token; None when the replica left something out or returned no number."""
    lengths = [len(probe.output_ids) for probe in known.probes]
    if any([len(row) for row in rows] != lengths for rows in (replica_adapter, replica_base)):
        return None
    adapter_N, base_N = _flat(replica_adapter), _flat(replica_base)
    if not (np.isfinite(adapter_N).all() and np.isfinite(base_N).all()):
        return None
    first = known.probes[0]
    return Readings(
        base_N=_flat([probe.base_logprobs for probe in known.probes]),
        adapter_N=_flat([probe.adapter_logprobs for probe in known.probes]),
        replica_base_N=base_N,
        replica_adapter_N=adapter_N,
        without={group: _flat([probe.without[group] for probe in known.probes]) for group in first.without},
        parent_N=_flat([probe.parent_logprobs for probe in known.probes]) if first.parent_logprobs else None,
        exact=known.precision == "float32",
    )


def _flat(rows: Logprobs) -> Array:
    return np.fromiter(chain.from_iterable(rows), dtype=np.float64)
