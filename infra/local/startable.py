"""A context manager that starts on entry and stops on exit, also after a failed start."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Startable(ABC):
    """Leaves nothing running, however the block ends."""

    @abstractmethod
    def start(self) -> None:
        """Start. When this raises, ``stop`` is called."""

    @abstractmethod
    def stop(self) -> None:
        """Stop everything that runs. Idempotent."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
