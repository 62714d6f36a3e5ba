"""``--dry-run`` and ``--yes``, alike for every command that deletes or promotes: it shows what it would do, and asks before it does it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click


@dataclass(frozen=True)
class Confirmation:
    """What the command line says about doing it."""

    dry_run: bool
    yes: bool

    def given(self, deed: str) -> bool:
        """True when ``deed`` (a clause: "delete 3 artifacts") may be done. Asks on a terminal; elsewhere raises UsageError without ``--yes``."""
        if self.dry_run:
            click.echo(f"--dry-run: nothing was changed. It would {deed}", err=True)
            return False
        if self.yes:
            return True
        if not sys.stdin.isatty():
            raise click.UsageError(f"nothing was changed. Add --yes to {deed}, or --dry-run to only look")
        if not click.confirm(f"{deed[0].upper()}{deed[1:]}?", err=True):
            click.echo("nothing was changed", err=True)
            return False
        return True


def confirm_options(*also_yes: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds ``--dry-run`` and ``--yes``; the command gets them as ``confirmation``. ``also_yes``: further names of ``--yes``."""

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def with_confirmation(*arguments: Any, dry_run: bool, yes: bool, **options: Any) -> None:
            if dry_run and yes:
                raise click.UsageError("--dry-run and --yes contradict each other: give one of them")
            command(*arguments, confirmation=Confirmation(dry_run, yes), **options)

        asked = click.option("--yes", "-y", *also_yes, "yes", is_flag=True, help="Do it without asking.")(with_confirmation)
        return click.option("--dry-run", is_flag=True, help="Only show what would be done.")(asked)

    return decorated
