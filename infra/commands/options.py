"""Options that many commands share."""

from collections.abc import Callable

import click


def settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """``--config`` and ``--set``, which every command that reads settings takes."""
    command = click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override one setting; repeatable.")(command)
    return click.option("--config", default=None, metavar="FILE|NAME", help="A TOML file, or a shipped one: demo, laptop, gpu.")(command)
