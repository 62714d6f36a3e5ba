"""Shows progress during a run: one live line on a terminal, or a plain line at intervals in a log."""

import sys
import time
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from infra.demo.paired_rise import PairedRise

PLAIN_EVERY_S = 15.0


@dataclass
class Now:
    """The current state, for the progress line."""

    stage: str = "starting"
    left_s: float = 0.0
    answers: int = 0
    thumbs: int = 0
    approval: float | None = None
    """Approval by the simulated people's true preference, over their last answers."""
    reward_version: int = 0
    reward_auc: float | None = None
    """AUC: probability that the reward model ranks an unseen good answer above an unseen bad one."""
    step: int = 0
    serving: str = "base"
    rise: PairedRise = field(default_factory=PairedRise)
    """The rise by pairs of held-out questions so far."""
    lag_s: float | None = None
    """Seconds from the newest feedback that the newest adapter learned from to its publication."""
    tokens_per_s: float | None = None
    """Sampled and trained tokens of the learner's last step per second."""

    def cells(self) -> list[tuple[str, str]]:
        """Names and values, in the order of display."""
        return [
            ("stage", self.stage),
            ("left", f"{max(0.0, self.left_s) / 60:.1f} min"),
            ("answers", str(self.answers)),
            ("thumbs", str(self.thumbs)),
            ("approval", "–" if self.approval is None else f"{self.approval:.0%}"),
            (
                "reward model",
                "–" if not self.reward_version else f"v{self.reward_version}" + (f" AUC {self.reward_auc:.2f}" if self.reward_auc else ""),
            ),
            ("RL step", str(self.step)),
            ("serving", self.serving),
            ("rise", str(self.rise) if self.rise.pairs else "–"),
            ("lag", "–" if self.lag_s is None else f"{self.lag_s:.0f} s"),
            ("tokens/s", "–" if self.tokens_per_s is None else f"{self.tokens_per_s:.0f}"),
        ]

    def _reward_model(self) -> str:
        ranking = "" if self.reward_auc is None else f" AUC {self.reward_auc:.2f}"
        return f"v{self.reward_version}{ranking}" if self.reward_version else "–"


class Progress:
    """A context manager that shows ``Now``. Plain lines when the stream is not a terminal."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream = stream
        self._live = Live(console=Console(file=stream), refresh_per_second=4, transient=True) if stream.isatty() else None
        self._last_plain_s, self._last_stage = 0.0, ""
        self._started_s = time.monotonic()

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, now: Now) -> None:
        """Redraw. In a log: print a line when the stage changed or the last line is old."""
        if self._live:
            table = Table(show_header=True, header_style="dim", box=None, pad_edge=False)
            for name, _ in now.cells():
                table.add_column(name)
            table.add_row(*(value for _, value in now.cells()))
            self._live.update(table)
        elif now.stage != self._last_stage or time.monotonic() - self._last_plain_s >= PLAIN_EVERY_S:
            self._last_plain_s, self._last_stage = time.monotonic(), now.stage
            told = "  ".join(f"{name}: {value}" for name, value in now.cells() if value != "–")
            print(f"[{time.monotonic() - self._started_s:5.0f} s] {told}", file=self._stream, flush=True)

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if self._live:
            self._live.console.print(line)
        else:
            print(f"[{time.monotonic() - self._started_s:5.0f} s] {line}", file=self._stream, flush=True)
