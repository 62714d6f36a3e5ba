"""Facts about the machine for the report: processor, load, and time per training step."""

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from infra.machine.machine_probe import processor_name
from infra.settings.config import Settings
from learner.runs.step_progress import PHASES
from streams.core.events import AdapterVersion


def step_s(adapter: AdapterVersion) -> float:
    """Seconds of an adapter's step: sampling, scoring and training."""
    return sum(adapter.metrics.get(f"{phase}_s", 0.0) for phase in PHASES)


@dataclass
class MachineFacts:
    """Facts about the machine, collected during a run."""

    predicted_step_s: float | None = None
    processor: str = field(default_factory=processor_name)
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    loads: list[float] = field(default_factory=list)
    """Load averages over one minute; the first from before the start."""
    cpu_s: Mapping[str, float] = field(default_factory=dict)
    """Processor seconds by part."""

    def look(self) -> None:
        """Record the load."""
        self.loads.append(os.getloadavg()[0])

    def rows(self, settings: Settings, adapters: Sequence[AdapterVersion], seconds: float) -> list[tuple[str, str]]:
        """Name and value, for the report."""
        learner, told = settings.learner, f"{self.processor}, {self.cores} core{'s' if self.cores > 1 else ''}"
        if self.loads:
            told += f"; load {self.loads[0]:.1f} before the start, {statistics.fmean(self.loads):.1f} on average"
        measured = [step_s(adapter) for adapter in adapters]
        steps = f"{statistics.median(measured):.0f} s a step (median of {len(measured)})" if measured else "no step completed"
        predicted = "" if self.predicted_step_s is None else f", {self.predicted_step_s:.0f} s predicted for the learner alone"
        size = f"{learner.prompts_per_step} x {learner.samples_per_prompt} x {learner.max_output_tokens} tokens"
        threads = f"{learner.threads or self.cores} thread{'s' if (learner.threads or self.cores) > 1 else ''}"
        rows = [("machine", told), ("learner", f"{steps}{predicted}; {size}, {learner.dtype}, {threads}")]
        if self.cpu_s:
            parts = ", ".join(f"{name} {spent:.0f} s" for name, spent in sorted(self.cpu_s.items(), key=lambda each: -each[1]))
            rows.append(("processor time", f"{parts}, of {seconds * self.cores:.0f} s available"))
        return rows

    def figures(self, adapters: Sequence[AdapterVersion]) -> dict[str, Any]:
        """For JSON."""
        return {
            "processor": self.processor,
            "cores": self.cores,
            "load_before": self.loads[0] if self.loads else None,
            "load_mean": statistics.fmean(self.loads) if self.loads else None,
            "step_s_predicted": self.predicted_step_s,
            "step_s": [round(step_s(adapter), 1) for adapter in adapters],
            "cpu_s": {name: round(spent, 1) for name, spent in self.cpu_s.items()},
        }
