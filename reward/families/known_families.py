"""All families, found by ``model_type``."""

from typing import Final

from reward.families.deepseek_v3_family import DEEPSEEK_V3
from reward.families.gpt_oss_family import GPT_OSS
from reward.families.llama_family import LLAMA, MISTRAL
from reward.families.mixtral_family import MIXTRAL
from reward.families.model_family import ATTENTION, ModelFamily
from reward.families.olmoe_family import OLMOE
from reward.families.qwen2_family import QWEN2
from reward.families.qwen3_family import QWEN3
from reward.families.qwen3_moe_family import QWEN3_MOE

FAMILIES: Final = (MIXTRAL, QWEN3_MOE, OLMOE, DEEPSEEK_V3, GPT_OSS, LLAMA, MISTRAL, QWEN2, QWEN3)


def family_of(model_type: object) -> ModelFamily | None:
    """The family of an architecture; None when it is not known."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def family_names() -> str:
    """All families' names, for a message."""
    return ", ".join(family.name for family in FAMILIES)


def lora_modules_of(family: ModelFamily | None) -> tuple[str, ...]:
    """Modules that vLLM should wrap: the family's, or attention of an unknown one."""
    return ATTENTION if family is None else family.lora_modules
