"""``tidemill keys …``: who may talk to an actor, give it feedback, or operate it."""

from pathlib import Path

import click

from streams.core.errors import ConfigError

file_option = click.option(
    "--file", "path", default=Path("keys.json"), show_default=True, type=click.Path(path_type=Path, dir_okay=False), help="The file of hashes."
)


@click.group()
def keys() -> None:
    """Keys of the actor's doors, kept as hashes in the file that actor.keys_file names."""


@keys.command()
@click.option("--tenant", required=True, help="Whose episodes they will be.")
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice(["talk", "feedback", "operate"]), help="Repeatable.")
@click.option("--rate", default=600, show_default=True, type=click.IntRange(1), help="Requests a minute.")
@file_option
def add(tenant: str, scopes: tuple[str, ...], rate: int, path: Path) -> None:
    """Make a key, keep its hash, and show the key this once."""
    from pydantic import ValidationError

    from actor.api_keys import Key, new_key, read_keys, write_keys

    standing = read_keys(path) if path.exists() else ()
    key, sha256 = new_key()
    try:
        made = Key.model_validate({"sha256": sha256, "tenant": tenant, "scopes": scopes, "requests_per_minute": rate})
    except ValidationError as error:
        raise ConfigError(f"--tenant {tenant}: {error.errors(include_url=False)[0]['msg']}") from None
    write_keys(path, (*standing, made))
    click.echo(key)
    click.echo(f"kept as {sha256[:12]} in {path}; it counts within a second where actor.keys_file names that file", err=True)


@keys.command(name="list")
@file_option
def list_keys(path: Path) -> None:
    """Every key by the beginning of its hash."""
    from actor.api_keys import read_keys

    for key in read_keys(path):
        click.echo(f"{key.sha256[:12]}  {key.tenant}  {','.join(key.scopes)}  {key.requests_per_minute}/min")


@keys.command()
@click.argument("hash_prefix")
@file_option
def revoke(hash_prefix: str, path: Path) -> None:
    """Take out the one key whose hash begins so."""
    from actor.api_keys import read_keys, write_keys

    standing = read_keys(path)
    meant = [key for key in standing if key.sha256.startswith(hash_prefix)]
    if len(meant) != 1:
        raise ConfigError(f"{len(meant)} keys in {path} have a hash that begins with {hash_prefix!r}; name exactly one (`tidemill keys list`)")
    write_keys(path, [key for key in standing if key is not meant[0]])
    click.echo(f"revoked {meant[0].sha256[:12]} of {meant[0].tenant}")
