"""Options and kinds of values that many commands share."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click


def settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """``--config`` and ``--set``, which every command that reads settings takes."""
    command = click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override one setting; repeatable.")(command)
    return click.option(
        "--config", default=None, metavar="FILE|NAME", help="A TOML file, or a configuration that comes with Tidemill: demo, laptop, gpu."
    )(command)


class Time(click.ParamType[datetime]):
    """ISO 8601; without a zone it is UTC."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time: write 2026-03-01 or 2026-03-01T12:00:00+01:00", param, ctx)
        return time if time.tzinfo else time.replace(tzinfo=UTC)
