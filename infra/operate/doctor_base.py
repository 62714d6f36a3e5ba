"""``tidemill doctor --base FOLDER``: what works with a base, before anything starts."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from infra.machine.base_shape import shape_in
from infra.operate.doctor import DoctorFinding, memory_finding
from infra.settings.config import Settings
from learner.models.lora_settings import AUTO
from reward.families.base_folder import BaseFolder, highest_token, read_base
from reward.families.known_families import family_names
from streams.core.errors import ConfigError

GIB = 2**30
CONVERSATIONS: dict[str, list[dict[str, str]]] = {
    "a system message": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}],
    "two questions in a row": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    "an answer first": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}],
    "a tool's result": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "tool", "content": "c"},
    ],
}  # fmt: skip
"""Conversations that some templates refuse."""


def examine_base(folder: Path, settings: Settings) -> list[DoctorFinding]:
    """All findings about the base in this folder, with these settings."""
    try:
        facts = read_base(folder)
    except ConfigError as error:
        return [DoctorFinding("base", False, str(error), "docs/guides/base-models.md")]
    checks: tuple[Callable[[BaseFolder, Settings], DoctorFinding], ...] = (
        _family, _experts, _targets, _rank, _memory, _reward, _tokenizer, _template,
    )  # fmt: skip
    settings = settings.model_copy(update={"policy": settings.policy.model_copy(update={"base": folder})})
    return [check(facts, settings) for check in checks]


def _family(facts: BaseFolder, settings: Settings) -> DoctorFinding:
    size = f"{facts.parameters / 1e9:.2f} billion parameters, {facts.weights_bytes / GIB:.1f} GiB on disk"
    if facts.family is None:
        told = (
            f"{facts.model_type}: of no known family; {size}. The learner compares it with transformers when it loads it, and trains attention alone"
        )
        return DoctorFinding("base", False, told, f"known families: {family_names()}")
    return DoctorFinding("base", True, f"{facts.family.name} ({facts.model_type}), {size}")


def _experts(facts: BaseFolder, settings: Settings) -> DoctorFinding:
    family = facts.family
    if family is None or family.experts is None:
        return DoctorFinding("experts", True, "dense: no routed experts" if family else "not known: experts are left alone")
    try:
        shape = shape_in(facts.folder)
    except ConfigError as error:
        return DoctorFinding("experts", False, str(error), "complete config.json")
    ours = "in factored form" if family.experts.plain else "by transformers' own code (slower)"
    shared = ", shared experts beside them" if family.shared else ""
    return DoctorFinding("experts", True, f"{shape.experts} experts, {shape.experts_per_token} a token{shared}; the learner computes them {ours}")


def _targets(facts: BaseFolder, settings: Settings) -> DoctorFinding:
    """Explicit targets are looked for in the names of the weights; a family's own are there by definition."""
    learner, family = settings.learner, facts.family
    present = {part for name in facts.names for part in name.split(".")}
    asked = (*(learner.attention_targets if learner.attention_targets != AUTO else ()), *learner.shared_targets)
    if missing := [name for name in asked if name not in present]:
        return DoctorFinding(
            "targets", False, f"no weight of this base is named {', '.join(missing)}", "correct learner.attention_targets or shared_targets"
        )
    if family and (folded := [name for name in asked if name in family.vllm.unserved]):
        return DoctorFinding("targets", False, f"{folded[0]}: {family.vllm.unserved[folded[0]]}", "take it out of learner.attention_targets")
    own = [name for name in family.served_attention if name in present] if family else ["q_proj", "k_proj", "v_proj", "o_proj"]
    attention = own if learner.attention_targets == AUTO else learner.attention_targets
    rounded = family is not None and family.experts is not None and not family.experts.plain and learner.precision != "float32"
    own_fused = family.experts.parameters if family and family.experts and not rounded else ()
    fused = own_fused if learner.expert_targets == AUTO else learner.expert_targets
    if fused and family and family.experts is None:
        return DoctorFinding(
            "targets", False, f"learner.expert_targets = {', '.join(fused)}, but this base is dense", "set learner.expert_targets = []"
        )
    if family and family.experts and 0 < len(fused) < len(family.experts.parameters):
        both = ", ".join(family.experts.parameters)
        return DoctorFinding(
            "targets", False, f"learner.expert_targets = {', '.join(fused)}: vLLM serves both ({both}) or none", "name both, or none"
        )
    told = ", ".join([*attention, *(f"experts' {name}" for name in fused), *(f"shared experts' {name}" for name in learner.shared_targets)])
    why = (
        "; its experts are left out in bfloat16, where PEFT would round a small adapter away (learner.dtype = float32 takes them)" if rounded else ""
    )
    return DoctorFinding("targets", True, f"the adapter goes on {told}{why}")


def _rank(facts: BaseFolder, settings: Settings) -> DoctorFinding:
    told = f"learner.rank = {settings.learner.largest_rank}, actor.max_rank = {settings.actor.max_rank}"
    return DoctorFinding(
        "rank", settings.learner.largest_rank <= settings.actor.max_rank, told, "raise actor.max_rank: replicas refuse larger adapters"
    )


def _memory(facts: BaseFolder, settings: Settings) -> DoctorFinding:
    return memory_finding(settings)


def _reward(facts: BaseFolder, settings: Settings) -> DoctorFinding:
    backbone = settings.reward.backbone_of(facts.folder)
    try:
        small = read_base(backbone, "reward.backbone")
    except ConfigError as error:
        own = "set reward.backbone to a small dense model's folder (the policy's own base works too, and costs its memory once more)"
        return DoctorFinding("reward", False, str(error), own)
    return DoctorFinding("reward", True, f"features come from {backbone} ({small.model_type}, {small.parameters / 1e9:.2f} billion parameters)")


def _tokenizer(facts: BaseFolder, settings: Settings) -> DoctorFinding:
    highest = highest_token(facts.folder)
    if highest is None:
        return DoctorFinding("tokenizer", True, "no tokenizer.json: how many tokens it has is seen when the learner loads it")
    try:
        facts.check_tokens(highest)
    except ConfigError as error:
        return DoctorFinding("tokenizer", False, str(error), "its own tokenizer, or embeddings of the right size")
    return DoctorFinding("tokenizer", True, f"{highest + 1} tokens, the model knows {facts.head_rows}")


def _template(facts: BaseFolder, settings: Settings) -> DoctorFinding:
    """Renders the conversations that templates refuse."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(facts.folder), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        return DoctorFinding(
            "template", False, f"transformers cannot load the tokenizer: {str(error).splitlines()[0]}", "copy the model's tokenizer files"
        )
    if tokenizer.chat_template is None:
        return DoctorFinding("template", False, "the tokenizer has no chat template", "add chat_template.jinja: without it the actor answers no chat")
    if tokenizer.eos_token_id is None:
        return DoctorFinding("template", False, "the tokenizer names no eos_token: answers would not end", "set eos_token in tokenizer_config.json")
    refused = list(_refused(tokenizer))
    known = f"; of published ones: {facts.family.template}" if facts.family and facts.family.template else ""
    if refused == ["a plain question"]:
        return DoctorFinding("template", False, "the chat template refuses a plain question", "correct chat_template.jinja")
    told = f"refuses {', '.join(refused)}: such conversations are counted and teach nothing" if refused else "takes every order of roles"
    return DoctorFinding("template", True, told + known)


def _refused(tokenizer: Any) -> Iterator[str]:
    if not _renders(tokenizer, [{"role": "user", "content": "a"}]):
        yield "a plain question"
        return
    yield from (name for name, turns in CONVERSATIONS.items() if not _renders(tokenizer, turns))


def _renders(tokenizer: Any, turns: list[dict[str, str]]) -> bool:
    try:
        tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except Exception:  # noqa: BLE001 - the boundary to a template's own program, which raises what it likes
        return False
    return True
