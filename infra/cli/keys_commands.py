"""``tidemill keys …``: API keys of an actor, with the scopes talk, feedback, assign and operate."""

from pathlib import Path

import click

from streams.core.errors import ConfigError

file_option = click.option(
    "--file", "path", default=Path("keys.json"), show_default=True, type=click.Path(path_type=Path, dir_okay=False), help="File of hashed keys."
)


@click.group()
def keys() -> None:
    """API keys of an actor, stored as hashes in the file that actor.keys_file names."""


@keys.command()
@click.option("--tenant", required=True, help="Tenant of the episodes and feedback sent with this key.")
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice(["talk", "feedback", "assign", "operate"]), help="Repeatable.")
@click.option("--rate", default=600, show_default=True, type=click.IntRange(1), help="Requests per minute.")
@file_option
def add(tenant: str, scopes: tuple[str, ...], rate: int, path: Path) -> None:
    """Make a key, store its hash, and show the key once."""
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
    click.echo(f"stored as {sha256[:12]} in {path}; actors whose actor.keys_file names that file accept it within a second", err=True)


@keys.command(name="list")
@file_option
def list_keys(path: Path) -> None:
    """List all keys by the beginning of their hash."""
    from actor.api_keys import read_keys

    for key in read_keys(path):
        click.echo(f"{key.sha256[:12]}  {key.tenant}  {','.join(key.scopes)}  {key.requests_per_minute}/min")


@keys.command()
@click.argument("hash_prefix")
@file_option
def revoke(hash_prefix: str, path: Path) -> None:
    """Remove the key whose hash begins with HASH_PREFIX."""
    from actor.api_keys import read_keys, write_keys

    standing = read_keys(path)
    meant = [key for key in standing if key.sha256.startswith(hash_prefix)]
    if len(meant) != 1:
        raise ConfigError(f"{len(meant)} keys in {path} have a hash that begins with {hash_prefix!r}; name exactly one (`tidemill keys list`)")
    write_keys(path, [key for key in standing if key is not meant[0]])
    click.echo(f"revoked {meant[0].sha256[:12]} of {meant[0].tenant}")
