"""Bases of published shapes without their weights: a folder whose safetensors file is a hole, and weights that are drawn on the device."""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SHAPES: Final[dict[str, dict[str, Any]]] = {
    "qwen3-4b": {"model_type": "qwen3", "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
                 "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936, "tie_word_embeddings": True},
    "olmoe-1b-7b": {"model_type": "olmoe", "hidden_size": 2048, "intermediate_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16,
                    "num_key_value_heads": 16, "num_experts": 64, "num_experts_per_tok": 8, "vocab_size": 50_304, "tie_word_embeddings": False},
    "qwen3-30b-a3b": {"model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
                      "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
                      "num_experts_per_tok": 8, "vocab_size": 151_936, "tie_word_embeddings": False},
    "tiny": {"model_type": "qwen3", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512, "tie_word_embeddings": False},
    "tiny-mixture": {"model_type": "qwen3_moe", "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 32, "num_hidden_layers": 2,
                     "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2,
                     "vocab_size": 512, "tie_word_embeddings": False},
}  # fmt: skip
TEMPLATE: Final = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"


def write_base(shape: str, folder: Path) -> None:
    """Configuration, a tokenizer of bytes, and weights that are all zero and take no room on the disk."""
    given = dict(SHAPES[shape])
    config = AutoConfig.for_model(given.pop("model_type"), **given, max_position_embeddings=1 << 17, eos_token_id=0, pad_token_id=0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    config.architectures, config.dtype = [type(model).__name__], torch.bfloat16
    config.save_pretrained(folder)
    _write_hole({name: tuple(weight.shape) for name, weight in model.state_dict().items() if not (config.tie_word_embeddings and "lm_head" in name)},
                folder / "model.safetensors")  # fmt: skip
    _tokenizer(config.vocab_size).save_pretrained(folder)


def draw_weights(model: torch.nn.Module, trained: Mapping[str, Tensor], seed: int = 0) -> None:
    """Random weights in place, where they lie: norms near 1, adapters and all else normal. Equal seeds on one kind of device give equal weights."""
    torch.manual_seed(seed)
    own = {id(weight) for weight in trained.values()}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if id(weight) in own:
                weight.normal_(0.0, 0.02)
            elif "norm" in name:
                weight.fill_(1.0)
            else:
                weight.normal_(0.0, weight.shape[-1] ** -0.5)


def _write_hole(shapes: Mapping[str, tuple[int, ...]], file: Path) -> None:
    """A safetensors file of bfloat16 zeros: its header, and a hole as long as the rest."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        end = start + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(raw)) + raw)
        out.truncate(8 + len(raw) + start)


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Bytes, and an end of text; every id of the vocabulary that is beyond them is a word of its own, so that any sample can be read."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {"<end>": 0, **{letter: number for number, letter in enumerate(letters, 1)}}
    words |= {f"<{number}>": number for number in range(len(words), vocabulary)}
    made = Tokenizer(models.BPE(vocab=words, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<end>", chat_template=TEMPLATE)
