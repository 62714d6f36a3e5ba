"""Collects what the GPU benchmark needs beside torch, transformers and accelerate, as wheels in a folder. `python -m benchmarks.gpu_wheels wheels`.

The versions are those of infra/build/locks/gpu.txt. Together they may take at most 64 MiB, to be carried to a machine without a network.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Final

NEEDED: Final = ("annotated-types", "peft", "psutil", "pydantic", "pydantic-core", "structlog", "typing-inspection")
"""Distributions that ``benchmarks.gpu`` imports and that a machine with torch, transformers and accelerate lacks; a test holds it to what is
imported."""
LOCK: Final = Path(__file__).parents[1] / "infra/build/locks/gpu.txt"
LIMIT_MIB: Final = 64


def requirements() -> list[str]:
    """The locked versions of what is needed."""
    locked = {line.partition("==")[0].strip(): line.split(";")[0].strip() for line in LOCK.read_text().splitlines() if "==" in line}
    return [locked[name] for name in NEEDED]


def main() -> None:
    """Download the wheels, and fail where they are too large."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="version on the machine with the GPU")
    options = parser.parse_args()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--python-version", options.python]
    subprocess.run([*command, "--dest", str(options.folder), *requirements()], check=True)
    mib = sum(file.stat().st_size for file in options.folder.iterdir()) / 2**20
    if mib > LIMIT_MIB:
        sys.exit(f"{mib:.1f} MiB in {options.folder}, more than {LIMIT_MIB}")
    print(f"{mib:.1f} MiB in {options.folder}")


if __name__ == "__main__":
    main()
