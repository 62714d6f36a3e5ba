"""``tidemill learner …``: adapters again from their recipes."""

import re
import sys
from collections.abc import Callable

import click

from streams.errors import ConfigError


def learner_commands(settings_options: Callable[[Callable[..., None]], Callable[..., None]]) -> click.Group:
    """The group, whose commands take the settings as all others do."""

    @click.group()
    def learner() -> None:
        """The learner: make an adapter again and prove it."""

    @learner.command()
    @click.argument("adapter")
    @settings_options
    def replay(adapter: str, config: str | None, overrides: tuple[str, ...]) -> None:
        """Make ADAPTER (such as default@7) and all before it again, step by step, and prove each equal bit for bit; exits 1 when one is not."""
        from infra.config import load
        from infra.roles import artifacts_uri, base_folder, lake_uri
        from learner.replay import ancestry
        from learner.replay import replay as again
        from streams.artifacts import ArtifactStore
        from streams.lake_files import Lake
        from streams.signing import Signing
        from streams.topics import ADAPTERS

        if (named := re.fullmatch(r"(.+)@(\d+)", adapter)) is None:
            raise ConfigError(f"{adapter!r} names no adapter: write policy@version, such as default@7")
        settings = load(config, overrides)
        known = [event for event in Lake(lake_uri(settings)).replay(ADAPTERS) if event.policy == named.group(1)]
        chain = ancestry(known, int(named.group(2)))
        store = ArtifactStore(artifacts_uri(settings), Signing(settings.signing))
        equal = True
        for one in again(chain, store, base_folder(settings.policy), settings.reward):
            equal &= one.equal
            verdict = "equal" if one.equal else f"NOT EQUAL: replayed {one.replayed[:12]}"
            click.echo(f"{one.name}  step {one.step}  weights {one.published[:12]}  {verdict}")
        if not equal:
            sys.exit(1)

    return learner
