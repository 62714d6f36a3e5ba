"""The names of the lake's files, which are its commit log: what a file holds is in its name, and which files are no more needed follows from them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Self

NAME = re.compile(r"day=(\d{4}-\d\d-\d\d)/(\d+)-(\d+)-(\d+)\.parquet$")
UNFINISHED = re.compile(r"/\.[0-9a-f]{32}\.tmp$")


@dataclass(frozen=True, slots=True)
class LakeFile:
    """One file, as its name says: records ``first`` to ``last`` of a partition, of one UTC day."""

    path: str
    day: date
    partition: int
    first: int
    last: int
    size_bytes: int = field(default=0, compare=False)

    @classmethod
    def named(cls, path: str, size_bytes: int = 0) -> Self | None:
        """The file of this path; None where the name is not one of the lake's."""
        if (found := NAME.search(path)) is None:
            return None
        day, partition, first, last = found.groups()
        return cls(path, date.fromisoformat(day), int(partition), int(first), int(last), size_bytes)

    @classmethod
    def at(cls, folder: str, day: date, partition: int, first: int, last: int) -> Self:
        """The file of these records in a topic's folder."""
        return cls(f"{folder}/day={day.isoformat()}/{partition:03}-{first:012}-{last:012}.parquet", day, partition, first, last)


def in_reading_order(files: Iterable[LakeFile]) -> list[LakeFile]:
    """By partition and first offset; of two with the same first offset the longer one comes first."""
    return sorted(files, key=lambda file: (file.partition, file.first, -file.last))


def covered(files: Sequence[LakeFile]) -> list[LakeFile]:
    """Files whose records all lie in one longer file, which a merge wrote: a kill came before they were deleted. ``files``: in reading order."""
    found, longest = [], None
    for file in files:
        if longest is not None and (file.partition, file.day) == (longest.partition, longest.day) and file.last <= longest.last:
            found.append(file)
        elif longest is None or file.partition != longest.partition or file.last > longest.last:
            longest = file
    return found
