"""Signatures: nothing is loaded that no trusted key vouches for, under the very name it was signed for."""

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.cli.main import main
from infra.settings.config import load, secrets_as_environment, to_toml
from streams.artifacts.artifact_store import SIGNATURE, ArtifactStore
from streams.artifacts.signing import KeyPair, Signing
from streams.artifacts.signing_settings import SigningSettings
from streams.core.errors import BadArtifact, ConfigError
from streams.core.events import Artifact

PAIR, STRANGER = KeyPair.generate(), KeyPair.generate()


def signing(*trusted: KeyPair, by: KeyPair | None = None) -> Signing:
    return Signing(SigningSettings(private_key=by.private_key if by else None, trusted_keys=tuple(pair.public_key for pair in trusted)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "adapter"
    made.mkdir()
    (made / "adapter_config.json").write_text('{"r": 8}')
    return made


def put(tmp_path: Path, folder: Path, by: KeyPair | None, path: str = "adapters/default/1") -> Artifact:
    return ArtifactStore(str(tmp_path / "store"), signing(by=by)).put(folder, path)


def fetch(tmp_path: Path, artifact: Artifact, *trusted: KeyPair) -> Path:
    return ArtifactStore(str(tmp_path / "store"), signing(*trusted)).fetch(artifact, tmp_path / "into")


def test_what_a_trusted_key_signed_is_taken_and_needs_no_private_key(tmp_path: Path, folder: Path) -> None:
    artifact = put(tmp_path, folder, by=PAIR)
    assert (fetch(tmp_path, artifact, STRANGER, PAIR) / "adapter_config.json").read_text() == '{"r": 8}'
    assert not (tmp_path / "into" / SIGNATURE).exists()


@pytest.mark.parametrize(("by", "reason"), [(None, "not signed"), (STRANGER, "a key that signing.trusted_keys does not name")])
def test_what_nobody_or_a_stranger_signed_is_refused(tmp_path: Path, folder: Path, by: KeyPair | None, reason: str) -> None:
    artifact = put(tmp_path, folder, by)
    with pytest.raises(BadArtifact, match=reason):
        fetch(tmp_path, artifact, PAIR)
    assert not (tmp_path / "into").exists()
    assert fetch(tmp_path, artifact).is_dir()  # without trusted keys checksums alone count


def test_a_signature_is_good_for_its_bytes_and_its_name_alone(tmp_path: Path, folder: Path) -> None:
    old = put(tmp_path, folder, by=PAIR)
    (folder / "adapter_config.json").write_text('{"r": 9}')
    new = put(tmp_path, folder, by=None, path="adapters/default/2")
    signature = (tmp_path / "store" / old.path / SIGNATURE).read_bytes()
    (tmp_path / "store" / new.path / SIGNATURE).write_bytes(signature)
    with pytest.raises(BadArtifact, match="does not match these bytes under this name"):
        fetch(tmp_path, new, PAIR)
    (folder / "adapter_config.json").write_text('{"r": 8}')
    again = put(tmp_path, folder, by=None, path="adapters/default/3")  # the bytes that were signed, under another name
    (tmp_path / "store" / again.path / SIGNATURE).write_bytes(signature)
    with pytest.raises(BadArtifact, match="does not match these bytes under this name"):
        fetch(tmp_path, again, PAIR)


@pytest.mark.parametrize("file", [b"", b"{}", b'{"key": 1}', b"\xff\xfe", b'{"key": "x", "signature": "not base64!"}'])
def test_a_signature_that_cannot_be_read_is_refused_in_words(tmp_path: Path, folder: Path, file: bytes) -> None:
    artifact = put(tmp_path, folder, by=PAIR)
    (tmp_path / "store" / artifact.path / SIGNATURE).write_bytes(file)
    with pytest.raises(BadArtifact, match="cannot be read"):
        fetch(tmp_path, artifact, PAIR)


def test_the_same_content_put_again_with_a_key_becomes_signed(tmp_path: Path, folder: Path) -> None:
    artifact = put(tmp_path, folder, by=None)
    assert put(tmp_path, folder, by=PAIR) == artifact
    assert fetch(tmp_path, artifact, PAIR).is_dir()


def test_a_key_that_is_none_is_refused_and_never_repeated() -> None:
    for setting in ("signing.private_key=c2hvcnQ=", "signing.private_key=***"):
        with pytest.raises(ConfigError, match="32 bytes in base64; `tidemill keys signing` makes a pair") as refused:
            load(None, (setting,), {})
        assert "c2hvcnQ" not in str(refused.value)


def test_a_new_pair_is_told_as_settings_that_load_and_the_private_key_reaches_no_file() -> None:
    said = CliRunner().invoke(main, ["keys", "signing"]).output
    secret = said.split("PRIVATE_KEY=")[1].splitlines()[0]
    trusted = tomllib.loads(said[said.index("[signing]") :])["signing"]["trusted_keys"]
    settings = load(None, (), {"TIDEMILL_SIGNING__PRIVATE_KEY": secret})
    assert secret not in to_toml(settings)
    assert secret not in repr(settings)
    assert secrets_as_environment(settings) == {"TIDEMILL_SIGNING__PRIVATE_KEY": secret}
    signature = Signing(settings.signing).sign("a/1", "0" * 64)
    Signing(SigningSettings(trusted_keys=tuple(trusted))).verify("a/1", "0" * 64, signature)
