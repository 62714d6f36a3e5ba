"""Compaction: small files of a day become larger ones, a little at a time, while the lake is written and read.

Only files that follow each other, of one partition and one day, are merged; so the merged file's name covers exactly their records, and names
remain the commit log. The merged file appears at once and whole. From then on the others are not needed: readers pass over them, and they are
deleted now, or after a kill at the next look. A merge that is not finished has changed nothing.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from itertools import groupby
from typing import Any

import structlog

from streams.core.errors import BadArtifact, Unavailable
from streams.core.part_context import PartContext
from streams.core.topics import TOPICS, Topic
from streams.lake.lake_file import LakeFile
from streams.lake.lake_settings import LakeSettings
from streams.lake.parquet_lake import Lake

log = structlog.get_logger()
Run = Sequence[LakeFile]
DAY_CLOSES_AFTER = timedelta(hours=1)
"""Records of a day are written a little later; so long after midnight none is waiting any more."""
TURN_BUDGET_S = 0.5
"""How long merging may keep the lake's loop from reading, at each of its turns. A row group or the end of a file takes as long as it takes."""


def due_runs(files: Run, open_day: date, compact_files: int, compact_bytes: int) -> list[Run]:
    """Which neighbours to merge, each run into one file of at most about ``compact_bytes``. ``files``: in reading order, none covered by another.

    Files of days before ``open_day`` are merged down to the fewest. Of later days, runs of at least ``compact_files``, unless one file holds more
    than half of the run: so a row is written again only into a file of at least twice the size.
    """
    runs: list[Run] = []
    for _, together in groupby(files, key=lambda file: (file.partition, file.day, file.size_bytes < compact_bytes)):
        group, start, end, total = list(together), 0, 0, 0
        if group[0].size_bytes >= compact_bytes:
            continue
        closed = group[0].day < open_day
        while start < len(group):
            while end < len(group) and total + group[end].size_bytes <= compact_bytes:
                total += group[end].size_bytes
                end += 1
            run = group[start:end]
            if len(run) >= 2 and (closed or (len(run) >= compact_files and 2 * max(file.size_bytes for file in run) <= total)):
                runs.append(run)
                start, total = end, 0
            else:
                total -= group[start].size_bytes
                start += 1
    return runs


class Compactor:
    """Merges what is due, a bit at each call. One thread: whoever changes files in another way calls ``abandon`` first."""

    def __init__(self, lake: Lake, settings: LakeSettings, context: PartContext) -> None:
        self._lake, self._settings, self._clock, self._metrics = lake, settings, context.clock, context.metrics
        self._due: deque[tuple[Topic[Any], Run]] = deque()
        self._merge: Iterator[None] | None = None
        self._look_at_s = 0.0
        self._damaged: set[str] = set()

    def advance(self, budget_s: float = TURN_BUDGET_S) -> bool:
        """Merge for about ``budget_s``, at least one step; every ``lake.compact_every_s`` look for what is due. True while there is more to do."""
        if self._settings.compact_every_s is None:
            return False
        began_s = self._clock.monotonic_s()
        try:
            if not self._due and began_s >= self._look_at_s:
                self._look_at_s = began_s + self._settings.compact_every_s
                self._look()
            while self._due:
                self._step(*self._due[0])
                if self._clock.monotonic_s() - began_s >= budget_s:
                    break
        except Unavailable as error:
            self._metrics.add("tidemill_lake_failures_total")
            log.error("files of the lake cannot be merged; tried again later", error=str(error), retry_s=self._settings.compact_every_s)
            self._drop()
        return bool(self._due)

    def abandon(self) -> None:
        """Forget the merge in hand, before files change in another way. The next call looks anew."""
        self._drop()
        self._look_at_s = 0.0

    def _look(self) -> None:
        open_day = (self._clock.now() - DAY_CLOSES_AFTER).date()
        for topic in TOPICS:
            files = self._lake.tidy(topic)
            self._metrics.set("tidemill_lake_files", len(files), topic=topic.name)
            sound = [file for file in files if file.path not in self._damaged]
            self._due.extend((topic, run) for run in due_runs(sound, open_day, self._settings.compact_files, self._settings.compact_bytes))

    def _step(self, topic: Topic[Any], run: Run) -> None:
        if self._merge is None:
            self._merge = self._lake.merge(topic, run)
        try:
            next(self._merge)
            return
        except StopIteration:
            self._metrics.add("tidemill_lake_compactions_total", topic=topic.name)
        except BadArtifact as error:  # its records may still be got out of it by hand; merging must not hide that
            self._damaged |= {file.path for file in run}
            log.error("files of the lake stay as they are: one of them is damaged", error=str(error), first=run[0].path, files=len(run))
        self._merge = None
        self._due.popleft()

    def _drop(self) -> None:
        self._merge = None
        self._due.clear()
