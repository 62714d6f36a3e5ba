"""Every secret that can be set stays out of whatever is printed, written, raised or put on a command line, whichever setting comes to be added."""

import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from click.testing import CliRunner
from pydantic import BaseModel, SecretStr

from infra.cli.main import main
from infra.settings.config import PREFIX, Settings, load, secrets_as_environment, to_toml
from streams.artifacts.signing import KeyPair
from streams.core.errors import ConfigError

SAYS_SECRET = re.compile(r"(password|secret|(?<!per_)token|private_key|api_key|operator_key)$")
HUSH = KeyPair.generate().private_key.get_secret_value()
"""Long enough, and of the right shape, for any of them."""


def parts_of(annotation: Any) -> Iterator[Any]:
    """A type and all that it is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from parts_of(part)


def fields(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, field in model.model_fields.items():
        kinds = list(parts_of(field.annotation))
        yield (*path, name), kinds
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from fields(kind, (*path, name))


SECRETS = [path for path, kinds in fields(Settings) if SecretStr in kinds]


def variable(path: tuple[str, ...]) -> str:
    return f"{PREFIX}{'__'.join(path)}".upper()


def test_what_sounds_like_a_secret_is_one() -> None:
    assert {("kafka", "sasl_password"), ("signing", "private_key"), ("console", "operator_key")} <= set(SECRETS)
    assert [path for path, kinds in fields(Settings) if SAYS_SECRET.search(path[-1]) and SecretStr not in kinds] == []


@pytest.mark.parametrize("path", SECRETS, ids=".".join)
def test_it_goes_to_children_by_the_environment_and_nowhere_else(path: tuple[str, ...]) -> None:
    environment = {variable(path): HUSH}
    settings = load(None, (), environment)
    assert secrets_as_environment(settings) == environment
    told = [to_toml(settings), repr(settings), str(settings), f"{settings!r:.100000}", settings.model_dump_json()]
    assert [text for text in told if HUSH in text] == []
    printed = CliRunner().invoke(main, ["config"], env=environment)
    assert printed.exit_code == 0
    assert HUSH not in printed.output


@pytest.mark.parametrize("path", SECRETS, ids=".".join)
def test_it_is_not_in_the_error_that_another_wrong_setting_raises(path: tuple[str, ...]) -> None:
    section = path[0]
    for wrong in (f"{section}.no_such_key=1", "actor.port=not-a-number"):
        with pytest.raises(ConfigError) as refused:
            load(None, (wrong,), {variable(path): HUSH})
        assert HUSH not in str(refused.value)
        assert refused.value.__suppress_context__


@pytest.mark.parametrize("path", SECRETS, ids=".".join)
def test_a_secret_of_a_wrong_shape_is_not_repeated(path: tuple[str, ...]) -> None:
    try:
        load(None, (), {variable(path): "hunter2"})
    except ConfigError as refused:
        assert "hunter2" not in str(refused)  # noqa: PT017 - some take any text
