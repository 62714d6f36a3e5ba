"""Which run a command means, and which settings file applies. The same rules hold for every command.

The settings file: ``--config``, else ``tidemill.toml`` in the working folder or the nearest folder above it.

The run: ``--run`` (or ``--set run_folder``), else ``TIDEMILL_RUN_FOLDER``, else ``run_folder`` of the settings file. Where none of these names it,
``up`` uses ``runs/up``, and commands about a ring take the run of ``runs/`` that runs now, or the newest.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.local.part_states import ring_runs
from infra.settings.config import Settings, layers, load, load_over
from infra.settings.person_key import adopt_person_key
from streams.core.errors import ConfigError

SETTINGS_FILE = "tidemill.toml"
RUNS = "runs"
RESOLVED = "config.toml"
"""A ring writes its resolved settings to this file in its run folder."""


class NoRun(ConfigError):
    """There is no run yet, or none of that name."""


@dataclass(frozen=True)
class RunChoice:
    """What a command line says about run and settings. Methods raise ConfigError."""

    run: str | None = None
    """``--run``: a folder, or a name without a slash, which means ``runs/NAME``."""
    config: str | None = None
    """``--config``."""
    overrides: tuple[str, ...] = ()
    """``--set``."""
    folder: Path = Path()
    """The working folder."""
    environment: Mapping[str, str] | None = None
    """Variables; None: those of this process."""

    def load(self, otherwise: str | None = None) -> Settings:
        """Settings to start something with. ``otherwise``: a shipped configuration, for when no settings file is named or found."""
        return load(*self._sources(otherwise))

    def source_of(self, key: str, otherwise: str | None = None) -> str:
        """Where the value of this setting comes from: the strongest source that names it."""
        config, overrides, environment, paths_from = self._sources(otherwise)
        named = [name for name, tree in layers(config, overrides, environment, paths_from) if _names(tree, key.split("."))]
        return named[-1] if named else "the default"

    def _sources(self, otherwise: str | None) -> tuple[str | Path | None, tuple[str, ...], Mapping[str, str] | None, Path | None]:
        run = () if self.run is None else (f"run_folder={self._run_named(self.run)}",)
        found = None if self.config else settings_file(self.folder)
        return self.config or found or otherwise, (*run, *self.overrides), self.environment, None if found is None else _beside(found, self.folder)

    def of_run(self, say: Callable[[str], None] = lambda line: None) -> Settings:
        """Settings of an existing run: those given, over those it was started with. ``say`` hears which of several runs was taken."""
        settings = self.load()
        if not self._names_run(settings):
            found = runs_in(self._home() / RUNS)
            if not found:
                raise NoRun(f"there is no run in {self._home() / RUNS}: start one with `tidemill up`, or name one with --run FOLDER")
            settings = settings.model_copy(update={"run_folder": found[0]})
            if len(found) > 1:
                say(f"run {found[0]} ({'it runs now' if ring_runs(found[0]) else 'the newest'}; --run names another)")
        elif self.run is not None and not settings.run_folder.is_dir():
            known = ", ".join(str(run) for run in runs_in(self._home() / RUNS))
            raise NoRun(f"--run {self.run}: there is no folder {settings.run_folder}{f'; runs here: {known}' if known else ''}")
        return of_run(settings)

    def _names_run(self, settings: Settings) -> bool:
        """True when flags, variables or a settings file say which run, or which cluster."""
        named = "run_folder" in settings.model_fields_set or settings.kafka.bootstrap_servers is not None
        return named or self.config is not None or settings_file(self.folder) is not None

    def _run_named(self, run: str) -> Path:
        return Path(run) if "/" in run or run in (".", "..") else self._home() / RUNS / run

    def _home(self) -> Path:
        """The folder whose ``runs/`` holds the runs: that of ``tidemill.toml``, or the working folder."""
        found = None if self.config else settings_file(self.folder)
        return self.folder if found is None else _beside(found, self.folder)


def settings_file(folder: Path) -> Path | None:
    """``tidemill.toml`` in this folder or the nearest one above."""
    start = folder.resolve()
    return next((file for each in (start, *start.parents) if (file := each / SETTINGS_FILE).is_file()), None)


def runs_in(folder: Path) -> list[Path]:
    """The runs in this folder: those whose ring runs now first, then the newest first."""
    found = [file.parent for file in folder.glob(f"*/{RESOLVED}")]
    return sorted(found, key=lambda run: (not ring_runs(run), -(run / RESOLVED).stat().st_mtime))


def of_run(settings: Settings) -> Settings:
    """The given settings over those of the run in ``run_folder``, whose embedded broker may have chosen its port."""
    resolved = settings.run_folder / RESOLVED
    if settings.kafka.bootstrap_servers is None and resolved.exists():
        settings = load_over(resolved, settings)
    adopt_person_key(settings)
    return settings


def _names(tree: Mapping[str, Any], keys: Sequence[str]) -> bool:
    """True when the tree has a value at these keys."""
    below = tree.get(keys[0])
    return keys[0] in tree if len(keys) == 1 else isinstance(below, Mapping) and _names(below, keys[1:])


def _beside(file: Path, folder: Path) -> Path:
    """The file's folder, relative to the working folder."""
    return folder if file.parent == folder.resolve() else folder / os.path.relpath(file.parent, folder.resolve())
