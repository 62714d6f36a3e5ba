"""``tidemill keys …``: every kind of key. API keys of an actor, and new ones for signatures, the console's operator and people's hashes."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from infra.cli.shared_options import json_option, settings_options
from streams.core.errors import ConfigError

if TYPE_CHECKING:
    from infra.settings.run_choice import RunChoice

file_option = click.option("--file", "path", default=None, type=click.Path(path_type=Path, dir_okay=False),
                           help="File of hashed keys. Default: actor.keys_file of the settings, or keys.json.")  # fmt: skip


@click.group()
def keys() -> None:
    """Keys: API keys of an actor (add, list, revoke), and new keys for signatures, the console's operator and people's hashes."""


@keys.command()
@click.option("--tenant", required=True, help="Tenant of the episodes and feedback sent with this key.")
@click.option(
    "--scope", "scopes", multiple=True, required=True, type=click.Choice(["talk", "feedback", "assign", "rollout", "operate"]), help="Repeatable."
)
@click.option("--rate", default=600, show_default=True, type=click.IntRange(1), help="Requests per minute.")
@file_option
@settings_options
def add(tenant: str, scopes: tuple[str, ...], rate: int, path: Path | None, choice: "RunChoice") -> None:
    """Make an API key, store its hash, and show the key once."""
    from pydantic import ValidationError

    from actor.api_keys import Key, new_key, read_keys, write_keys

    path = path or _keys_file(choice)
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
@json_option
@file_option
@settings_options
def list_keys(as_json: bool, path: Path | None, choice: "RunChoice") -> None:
    """List all API keys by the beginning of their hash."""
    from actor.api_keys import read_keys

    found = read_keys(path or _keys_file(choice))
    if as_json:
        rows = [(key.sha256[:12], key.tenant, list(key.scopes), key.requests_per_minute) for key in found]
        click.echo(json.dumps([dict(zip(("hash", "tenant", "scopes", "requests_per_minute"), row, strict=True)) for row in rows], indent=1))
        return
    for key in found:
        click.echo(f"{key.sha256[:12]}  {key.tenant}  {','.join(key.scopes)}  {key.requests_per_minute}/min")


@keys.command()
@click.argument("hash_prefix")
@file_option
@settings_options
def revoke(hash_prefix: str, path: Path | None, choice: "RunChoice") -> None:
    """Remove the API key whose hash begins with HASH_PREFIX."""
    from actor.api_keys import read_keys, write_keys

    path = path or _keys_file(choice)
    standing = read_keys(path)
    meant = [key for key in standing if key.sha256.startswith(hash_prefix)]
    if len(meant) != 1:
        raise ConfigError(f"{len(meant)} keys in {path} have a hash that begins with {hash_prefix!r}; name exactly one (`tidemill keys list`)")
    write_keys(path, [key for key in standing if key is not meant[0]])
    click.echo(f"revoked {meant[0].sha256[:12]} of {meant[0].tenant}")


@keys.command()
def signing() -> None:
    """Make a pair of keys for signing adapters and reward models, and say where each belongs."""
    from streams.artifacts.signing import KeyPair

    pair = KeyPair.generate()
    click.echo(f"# for the parts that publish (reward, learner); keep it secret\nTIDEMILL_SIGNING__PRIVATE_KEY={pair.private_key.get_secret_value()}")
    click.echo(f'# for every part, in its settings\n[signing]\ntrusted_keys = ["{pair.public_key}"]')


@keys.command()
def operator() -> None:
    """Make a key with which the console may replay, promote and roll back."""
    import secrets

    click.echo(f"# for `tidemill console`; keep it secret\nTIDEMILL_CONSOLE__OPERATOR_KEY={secrets.token_urlsafe(24)}")


@keys.command()
def person() -> None:
    """Make a key for people's hashes, for parts that `up` does not start. Every part of a ring needs the same one."""
    import secrets

    click.echo(f"# for every part, and for `tidemill erase`; keep it secret, and keep it\nTIDEMILL_ERASURE__PERSON_KEY={secrets.token_urlsafe(32)}")


keygen = click.Command("keygen", callback=signing.callback, hidden=True, help="The same as `tidemill keys signing`, by its earlier name.")


def _keys_file(choice: "RunChoice") -> Path:
    return choice.load().actor.keys_file or Path("keys.json")
