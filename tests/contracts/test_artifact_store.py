"""The artifact store's contract, held on a file system and in memory: written once, whole or not at all, never anywhere else."""

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
from pydantic import ValidationError

from streams.artifacts import artifact_store
from streams.artifacts.artifact_store import MANIFEST, ArtifactStore, fingerprint
from streams.core.errors import BadArtifact, ConfigError, Unavailable
from streams.core.events import Artifact


class Shop:
    """A store, and a hand that can change what lies in it."""

    def __init__(self, uri: str) -> None:
        self.store = ArtifactStore(uri)
        self._files, self._root = self.store._filesystem, self.store._root

    def overwrite(self, path: str, data: bytes) -> None:
        with self._files.open_output_stream(self._at(path)) as stream:
            stream.write(data)

    def read(self, path: str) -> bytes:
        with self._files.open_input_stream(self._at(path)) as stream:
            return bytes(stream.read())

    def remove(self, path: str) -> None:
        self._files.delete_file(self._at(path))

    def names(self) -> set[str]:
        found = self._files.get_file_info(pyarrow.fs.FileSelector(self._root, recursive=True, allow_not_found=True))
        return {info.path.removeprefix(self._root).lstrip("/") for info in found if info.is_file}

    def forge(self, manifest: Any) -> Artifact:
        """Put a manifest of our own beside the artifact's files; the event vouches for it."""
        text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        self.overwrite(f"a/1/{MANIFEST}", text)
        size = sum(entry["size_bytes"] for entry in manifest.values()) if isinstance(manifest, dict) else 0
        return Artifact(path="a/1", sha256=sha256(text).hexdigest(), size_bytes=max(0, size))

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if self._root else path


@pytest.fixture(params=["file", "memory"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    return Shop(str(tmp_path / "store") if request.param == "file" else "mock:///store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "adapter"
    (made / "deep").mkdir(parents=True)
    (made / "weights.safetensors").write_bytes(bytes(range(256)) * 100)
    (made / "deep" / "probes.json").write_text('{"probes": []}')
    return made


@pytest.fixture
def stored(shop: Shop, folder: Path) -> Artifact:
    return shop.store.put(folder, "a/1")


def entry(data: bytes) -> dict[str, Any]:
    return {"sha256": sha256(data).hexdigest(), "size_bytes": len(data)}


def test_what_was_put_is_fetched_byte_for_byte(shop: Shop, folder: Path, stored: Artifact, tmp_path: Path) -> None:
    fetched = shop.store.fetch(stored, tmp_path / "in" / "x")
    assert {p.relative_to(fetched).as_posix(): p.read_bytes() for p in fetched.rglob("*") if p.is_file()} == {
        "weights.safetensors": (folder / "weights.safetensors").read_bytes(),
        "deep/probes.json": b'{"probes": []}',
    }
    assert stored.size_bytes == 25_600 + 14
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["x"]


def test_the_same_content_may_be_put_again_and_another_may_not(shop: Shop, folder: Path, stored: Artifact) -> None:
    assert shop.store.put(folder, "a/1") == stored
    (folder / "weights.safetensors").write_bytes(b"other")
    with pytest.raises(BadArtifact, match="written once"):
        shop.store.put(folder, "a/1")
    assert shop.read("a/1/weights.safetensors") == bytes(range(256)) * 100


def test_one_checksum_vouches_for_every_name_and_byte(shop: Shop, folder: Path, stored: Artifact) -> None:
    (folder / "weights.safetensors").rename(folder / "renamed.safetensors")
    assert shop.store.put(folder, "a/2").sha256 != stored.sha256
    (folder / "renamed.safetensors").rename(folder / "weights.safetensors")
    assert shop.store.put(folder, "a/3").sha256 == stored.sha256


@pytest.mark.parametrize("cut", [-1, 1, 0])
def test_a_truncated_or_lengthened_file_is_refused(shop: Shop, stored: Artifact, tmp_path: Path, cut: int) -> None:
    data = shop.read("a/1/weights.safetensors")
    shop.overwrite("a/1/weights.safetensors", data + b"x" if cut > 0 else data[:-1] if cut else b"")
    with pytest.raises(BadArtifact, match="truncated or altered"):
        shop.store.fetch(stored, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_one_altered_byte_is_refused(shop: Shop, stored: Artifact, tmp_path: Path) -> None:
    data = bytearray(shop.read("a/1/weights.safetensors"))
    data[1000] ^= 1
    shop.overwrite("a/1/weights.safetensors", bytes(data))
    with pytest.raises(BadArtifact, match="truncated or altered"):
        shop.store.fetch(stored, tmp_path / "x")


def test_an_altered_manifest_is_refused(shop: Shop, stored: Artifact, tmp_path: Path) -> None:
    shop.overwrite(f"a/1/{MANIFEST}", shop.read(f"a/1/{MANIFEST}") + b" ")
    with pytest.raises(BadArtifact, match="its event says"):
        shop.store.fetch(stored, tmp_path / "x")


@pytest.mark.parametrize("name", [MANIFEST, "weights.safetensors"])
def test_a_missing_file_is_refused_and_what_stood_before_stays(shop: Shop, stored: Artifact, tmp_path: Path, name: str) -> None:
    shop.store.fetch(stored, tmp_path / "x")
    shop.remove(f"a/1/{name}")
    with pytest.raises(BadArtifact):
        shop.store.fetch(stored, tmp_path / "x")
    assert (tmp_path / "x" / "weights.safetensors").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_file_nobody_vouches_for_is_not_fetched(shop: Shop, stored: Artifact, tmp_path: Path) -> None:
    shop.overwrite("a/1/extra.json", b"{}")
    assert not (shop.store.fetch(stored, tmp_path / "x") / "extra.json").exists()


LEAVING = [
    "../out.json",
    "/etc/out.json",
    "a/../../out.json",
    "a//b.json",
    "./b.json",
    "a\\b.json",
    "nul\x00.json",
    "line\n.json",
    MANIFEST,
    ".json/..",
]


@pytest.mark.parametrize("name", [*LEAVING, "weights.pkl", "weights.bin", "x", "a" * 600 + ".json"])
def test_a_manifest_cannot_write_elsewhere_nor_bring_other_types(shop: Shop, stored: Artifact, tmp_path: Path, name: str) -> None:
    forged = shop.forge({name: entry(b"{}")})
    with pytest.raises(BadArtifact, match=r"would leave|not one of|reserved"):
        shop.store.fetch(forged, tmp_path / "in" / "x")
    assert list((tmp_path / "in").iterdir()) == []
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    "manifest",
    [
        b"[]",
        b"null",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        {"a.json": {"sha256": "0" * 64, "size_bytes": -5}, "b.json": {"sha256": "0" * 64, "size_bytes": 5}},
        {"a.json": {"sha256": "zz", "size_bytes": 5}},
        {"a.json": {"size_bytes": 5}},
        {"a.json": entry(b"1"), "a.json/b.json": entry(b"2")},
        {f"{number}.json": entry(b"") for number in range(10_001)},
    ],
    ids=str,
)
def test_a_manifest_of_another_shape_is_refused(shop: Shop, stored: Artifact, tmp_path: Path, manifest: Any) -> None:
    with pytest.raises(BadArtifact, match=r"malformed|lists"):
        shop.store.fetch(shop.forge(manifest), tmp_path / "x")


def test_a_size_that_differs_from_the_event_is_refused(shop: Shop, stored: Artifact, tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match="bytes, its event says"):
        shop.store.fetch(stored.model_copy(update={"size_bytes": stored.size_bytes + 1}), tmp_path / "x")


def test_links_and_other_types_are_not_put(shop: Shop, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("secret")
    (folder / "link.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(BadArtifact, match="link"):
        shop.store.put(folder, "a/1")
    (folder / "link.json").unlink()
    (folder / "folder.json").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(BadArtifact, match="link"):
        shop.store.put(folder, "a/1")
    (folder / "folder.json").unlink()
    os.mkfifo(folder / "pipe.json")
    with pytest.raises(BadArtifact, match="special"):
        shop.store.put(folder, "a/1")
    (folder / "pipe.json").unlink()
    (folder / "code.py").write_text("")
    with pytest.raises(BadArtifact, match="not one of"):
        shop.store.put(folder, "a/1")
    assert shop.names() == set()


def test_an_empty_folder_is_no_artifact(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadArtifact, match="no files"):
        shop.store.put(tmp_path / "empty", "a/1")


def test_a_put_that_died_before_its_end_does_not_exist_and_can_be_done_again(shop: Shop, folder: Path, stored: Artifact, tmp_path: Path) -> None:
    shop.remove(f"a/1/{MANIFEST}")
    with pytest.raises(BadArtifact, match="no manifest"):
        shop.store.fetch(stored, tmp_path / "x")
    assert shop.store.put(folder, "a/1") == stored
    shop.store.fetch(stored, tmp_path / "x")


@pytest.mark.parametrize("path", ["../a", "/a", "a/../b", "a//b", "", ".", "a/./b", "a b", "-a"])
def test_an_artifact_cannot_be_named_out_of_its_store(path: str) -> None:
    with pytest.raises(ValidationError):
        Artifact(path=path, sha256="0" * 64, size_bytes=0)


def test_a_store_that_cannot_be_used_says_so(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"artifacts\.uri"):
        ArtifactStore("nonsense://x")
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable):
        ArtifactStore(str(tmp_path / "file")).put(folder, "a/1")


def test_a_model_is_named_by_its_bytes_not_by_its_folder(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"x")
    (tmp_path / "two" / "README.txt").write_text("not a part of the model")
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")
    (tmp_path / "two" / "model.safetensors").write_bytes(b"y")
    assert fingerprint(tmp_path / "one") != fingerprint(tmp_path / "two")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadArtifact, match="no model"):
        fingerprint(tmp_path / "empty")


def test_a_local_artifact_is_on_the_disk_before_its_manifest_names_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut keeps what was synced: the manifest must come after all that it names, with their names in the folder."""
    synced: list[str] = []
    monkeypatch.setattr(artifact_store.os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    ArtifactStore(str(tmp_path / "store")).put(folder, "adapters/1")
    target = tmp_path / "store" / "adapters" / "1"
    manifest = next(number for number, path in enumerate(synced) if "manifest" in Path(path).name)
    for path in (each for each in folder.rglob("*") if each.is_file()):
        at = next(number for number, each in enumerate(synced) if Path(each).name.startswith(path.name))
        assert str((target / path.relative_to(folder)).parent) in synced[at + 1 : manifest]
    assert synced[-1] == str(target)
