"""A base's folder that no part could load is refused in one sentence, before anything is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from reward.families.base_folder import highest_token, memory_limit, read_base
from streams.core.errors import ConfigError


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


def rename(folder: Path, before: str, after: str) -> None:
    (folder / before).rename(folder / after)


def cut(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-10])


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "there is no such folder"),
    "no config": (lambda f: (f / "config.json").unlink(), r"has no config.json: it must hold a model as transformers saves it"),
    "a GGUF alone": (
        lambda f: ((f / "config.json").unlink(), rename(f, "model.safetensors", "m.Q4_1.gguf")),
        r"has no config.json but m.Q4_1.gguf; convert it once with transformers",
    ),
    "an adapter": (lambda f: rename(f, "config.json", "adapter_config.json"), "an adapter's adapter_config.json: name its base"),
    "config is no JSON": (lambda f: write(f, "config.json", "{"), "config.json cannot be read"),
    "config without a type": (lambda f: write(f, "config.json", "{}"), "config.json names no model_type"),
    "a GGUF in place of weights": (
        lambda f: rename(f, "model.safetensors", "m.IQ2_XXS.gguf"),
        r"no weights in safetensors but m.IQ2_XXS.gguf: convert it once",
    ),
    "pickled weights": (lambda f: rename(f, "model.safetensors", "pytorch_model.bin"), r"but pytorch_model.bin, a pickle that could run any program"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"has no weights in safetensors$"),
    "weights that end too early": (cut, r"model.safetensors cannot be read \(it ends 10 bytes too early\): fetch it again"),
    "weights that are none": (lambda f: write(f, "model.safetensors", "version https://git-lfs"), "model.safetensors cannot be read"),
    "a missing part": (
        lambda f: write(f, "model.safetensors.index.json", json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}})),
        r"1 of 2 weight files are missing \(model-2.safetensors …\)",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"has no tokenizer \(none of tokenizer.json, .*\): copy the tokenizer files"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "base"
    made.mkdir()
    save_file({"model.embed_tokens.weight": torch.zeros(7, 4), "model.layers.0.mlp.up_proj.weight": torch.zeros(8, 4)}, made / "model.safetensors")
    write(made, "config.json", json.dumps({"model_type": "llama", "vocab_size": 7}))
    write(made, "tokenizer.json", json.dumps({"model": {"vocab": {"a": 0, "b": 6}}, "added_tokens": [{"id": 5}]}))
    return made


def test_a_good_folder_says_what_it_holds(folder: Path) -> None:
    facts = read_base(folder)
    assert (facts.parameters, facts.head_rows, facts.model_type) == (60, 7, "llama")
    assert facts.family is not None
    assert facts.family.name == "Llama"
    assert highest_token(folder) == 6
    facts.check_tokens(6)


@pytest.mark.parametrize("case", sorted(BAD))
def test_a_folder_that_cannot_be_loaded_is_refused_in_one_sentence(case: str, folder: Path) -> None:
    spoil, sentence = BAD[case]
    spoil(folder)
    with pytest.raises(ConfigError, match=sentence) as refused:
        read_base(folder, "reward.backbone")
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("reward.backbone = ")


def test_a_tokenizer_with_more_tokens_than_the_head_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"highest token is 7, but the model knows 7 tokens \(0 to 6\).*resize its embeddings"):
        read_base(folder).check_tokens(7)


def test_a_base_larger_than_the_memory_is_refused_with_the_arithmetic(folder: Path) -> None:
    facts = read_base(folder)
    facts.check_memory(2, "learner.dtype = bfloat16", limit=120)
    with pytest.raises(ConfigError, match=r"0.0 billion parameters need 0.0 GiB at 4 bytes each \(learner.dtype = float32\), this machine has"):
        facts.check_memory(4, "learner.dtype = float32", limit=120)
    assert memory_limit() > 1 << 28
