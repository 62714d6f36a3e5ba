"""Makes the base in a child process, which can be cancelled and frees its memory when it ends."""

import os
import sys
import threading
from pathlib import Path

from infra.local.kafka_jars import cache_folder
from infra.preparation.child_runs import run_child
from infra.settings.policy_settings import PolicySettings
from learner.models.base_cache import base_path
from streams.core.errors import TidemillError, Unavailable


def prepared_base(policy: PolicySettings, broken_off: threading.Event) -> Path:
    """The base's folder; a child process makes it if it does not exist yet. Raises Unavailable when that fails or is cancelled."""
    from infra.local.part_process import base_folder

    if isinstance(policy.base, Path) or base_path(policy.base, cache_folder() / "bases", policy.experts, policy.experts_per_token).exists():
        return base_folder(policy)
    command = [sys.executable, "-P", "-m", "infra.preparation.base_preparation", policy.model_dump_json()]
    done = run_child(command, {**os.environ, "OMP_NUM_THREADS": "1"}, broken_off)  # a second thread does not make it faster
    if done.status:
        raise Unavailable(f"the base {policy.base} cannot be made: {done.last_line}")
    return Path(done.out.strip().rpartition("\n")[2])


def main(policy: str) -> None:
    """Make the base and print its folder."""
    from infra.local.part_process import base_folder

    try:
        print(base_folder(PolicySettings.model_validate_json(policy)))
    except (TidemillError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
