"""A disk under the lake on which the process dies: before, within or after any one of its changes."""

from typing import Any

from streams.lake.parquet_lake import Lake
from tests.support.simulated_log import Killed


class DyingDisk:
    """pyarrow's filesystem, counting its changes. At the change with number ``dies_at`` the process is killed; None: never."""

    def __init__(self, real: Any, dies_at: int | None = None, when: str = "before") -> None:
        self._real, self._when = real, when
        self.changes, self.dies_at = 0, dies_at

    @classmethod
    def under(cls, lake: Lake, dies_at: int | None = None, when: str = "before") -> "DyingDisk":
        """Put one under this lake."""
        disk = cls(lake._filesystem, dies_at, when)
        lake._filesystem = disk
        return disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def move(self, source: str, target: str) -> None:
        self._change(lambda: self._real.move(source, target))

    def delete_file(self, path: str) -> None:
        self._change(lambda: self._real.delete_file(path))

    def open_output_stream(self, path: str) -> Any:
        return _Stream(self, self._real.open_output_stream(path))

    def _change(self, work: Any, half: Any = lambda: None) -> None:
        self.changes += 1
        if self.changes != self.dies_at:
            work()
            return
        if self._when == "after":
            work()
        elif self._when == "within":
            half()
        raise Killed


class _Stream:
    """A file being written."""

    def __init__(self, disk: DyingDisk, real: Any) -> None:
        self._disk, self._real = disk, real

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self._real.close()

    def write(self, content: Any) -> None:
        whole = bytes(content)
        self._disk._change(lambda: self._real.write(whole), lambda: self._real.write(whole[: len(whole) // 2]))
