"""A small file system of its own, to be filled and emptied. Mounting one asks for root."""

import errno
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

CHUNK = b"\0" * 4096


class SmallDisk:
    """A tmpfs of so many MiB at ``folder``, which sees what an ordinary disk sees when it is full: ENOSPC, also on pages mapped into memory."""

    def __init__(self, folder: Path, mib: int) -> None:
        self._folder, self._mib, self._ballast = folder, mib, folder / "ballast"

    def fill(self) -> None:
        """To the last page."""
        with self._ballast.open("ab", buffering=0) as file:
            try:
                while file.write(CHUNK):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def make_room(self) -> None:
        """As much as there was before it was filled."""
        self._ballast.unlink()

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self._mib}m", "tmpfs", str(self._folder)], check=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        subprocess.run(["umount", "--lazy", str(self._folder)], check=True)
