"""Apache Kafka's jars: fetched from Maven once, cached per user, and checked against the committed lock before use."""

import contextlib
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from infra.preparation.child_runs import run_child
from streams.artifacts.artifact_store import sha256_of
from streams.core.errors import BadArtifact, Unavailable

# Resolved one by one: for both together, jgo chooses kafka-clients 3.9.1, which does not work with this broker.
COORDINATES = ("org.apache.kafka:kafka_2.13:4.4.0", "org.apache.logging.log4j:log4j-slf4j-impl:2.25.5")
KAFKA_VERSION = "4.4.0"
EXPECTED_BYTES = 43_700_000


def cache_folder() -> Path:
    """Where Tidemill caches what it fetched or built: ``$TIDEMILL_CACHE``, else ``$XDG_CACHE_HOME/tidemill``, else ``~/.cache/tidemill``."""
    if own := os.environ.get("TIDEMILL_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidemill"


def locked_checksums() -> dict[str, str]:
    """SHA-256 by jar name, from ``infra/build/locks/kafka-jars.sha256``."""
    text = resources.files("infra.build").joinpath("locks/kafka-jars.sha256").read_text()
    return {name: digest for digest, name in (line.split() for line in text.splitlines())}


def kafka_jars(cache: Path, progress: Callable[[float], None] = lambda _: None, broken_off: threading.Event | None = None) -> Path:
    """The folder of verified jars, fetched on the first call. ``progress`` gets the fraction done, 0 to 1; setting ``broken_off`` cancels.

    Raises BadArtifact when a jar differs from the lock, Unavailable when it cannot be fetched.
    """
    folder = cache / f"kafka-{KAFKA_VERSION}"
    if not folder.exists():
        _fetch(folder, progress, broken_off or threading.Event())
    verify(folder, locked_checksums())
    return folder


def verify(folder: Path, locked: dict[str, str]) -> None:
    """Check that the folder holds exactly the locked jars with the locked checksums."""
    found = {jar.name for jar in folder.glob("*.jar")}
    if missing := sorted(locked.keys() - found):
        raise BadArtifact(f"{folder} lacks {', '.join(missing)}; remove the folder and start again")
    if extra := sorted(found - locked.keys()):
        raise BadArtifact(f"{folder} holds jars that the lock does not name: {', '.join(extra)}; remove the folder and start again")
    for name, digest in locked.items():
        if (actual := sha256_of(folder / name)) != digest:
            raise BadArtifact(f"{folder / name} has SHA-256 {actual}, the lock says {digest}; remove the folder and start again")


def _fetch(folder: Path, progress: Callable[[float], None], broken_off: threading.Event) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    working = Path(tempfile.mkdtemp(prefix=".kafka-", dir=folder.parent))
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(working, progress, done), daemon=True)
    watch.start()
    try:
        done_by = run_child([sys.executable, "-P", "-m", "infra.local.kafka_jars", str(working)], os.environ, broken_off)
        if done_by.status:
            raise Unavailable(done_by.last_line)
        verify(working / "jars", locked_checksums())
        with contextlib.suppress(OSError):  # another process was faster; its jars are checked the same way
            (working / "jars").rename(folder)
    except (Unavailable, OSError) as error:
        if broken_off.is_set():
            raise
        raise Unavailable(
            f"cannot fetch Apache Kafka {KAFKA_VERSION} ({', '.join(COORDINATES)}) from Maven: {error}. "
            "Either connect this machine to a Maven repository once (the jars are kept afterwards), "
            f"or copy the folder {folder} from a machine that has it; to use a Kafka of your own set kafka.bootstrap_servers."
        ) from error
    finally:
        done.set()
        watch.join()
        shutil.rmtree(working, ignore_errors=True)
    progress(1.0)


def _watch(folder: Path, progress: Callable[[float], None], done: threading.Event) -> None:
    while not done.wait(0.5):
        size = 0
        for file in folder.rglob("*.jar"):
            with contextlib.suppress(OSError):
                size += file.stat().st_size
        progress(min(0.99, size / EXPECTED_BYTES))


def fetch_into(working: Path) -> None:
    """Fetch the jars from Maven into ``working/jars``. Run it in a child process: jgo prints to the caller's output."""
    import jgo  # takes half a second to import

    (working / "jars").mkdir()
    for coordinate in COORDINATES:
        environment = jgo.build(coordinate, cache_dir=working / "environment")
        for jar in Path(environment.path).rglob("*.jar"):
            shutil.copy(jar, working / "jars" / jar.name)


if __name__ == "__main__":
    fetch_into(Path(sys.argv[1]))
