"""What is started on entry and stopped on exit, also when it did not come up whole."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Startable(ABC):
    """A context manager: nothing of it is left behind, however it ends."""

    @abstractmethod
    def start(self) -> None:
        """Start it; what is left half started when this raises, ``stop`` stops."""

    @abstractmethod
    def stop(self) -> None:
        """Stop whatever of it runs; done twice it does nothing."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
