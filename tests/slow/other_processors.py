"""Every claim about learning with many seeds, in float32 and bfloat16, with one thread and two, on this processor's kernels and on those of others.

`python -m tests.slow.other_processors --seeds 10`. oneDNN and ATen choose their kernels when torch is imported, so each choice is a process of its
own. Prints the lowest figure of each claim beside its limit; exits 1 where one does not hold.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNELS: dict[str, dict[str, str]] = {
    "this processor": {},
    "no AVX-512": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}
THREADS = (1, 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--precisions", default="float32,bfloat16")
    parser.add_argument("tests", nargs="*", default=["tests/unit/learner", "tests/slow"], help="where to look for claims")
    told = parser.parse_args()
    failed = []
    for name, environment in KERNELS.items():
        for threads in THREADS:
            print(f"== {name}, {threads} thread(s)", flush=True)
            command = [sys.executable, "-m", "pytest", "-q", "-m", "learning", "--seeds", str(told.seeds), "--precisions", told.precisions]
            command += ["--threads", str(threads), *told.tests]
            done = subprocess.run(command, cwd=ROOT, env=os.environ | environment | {"OMP_NUM_THREADS": str(threads)}, check=False)
            failed += [f"{name}, {threads} thread(s)"] if done.returncode else []
    print(f"does not hold: {'; '.join(failed)}" if failed else "every claim holds everywhere")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
