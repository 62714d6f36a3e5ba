"""Dense Qwen3: q and k are normalised head by head."""

from reward.families.model_family import ModelFamily, VllmNeeds

QWEN3 = ModelFamily(
    name="Qwen3",
    model_types=("qwen3",),
    windows="some layers",
    template="Qwen3: earlier answers lose their reasoning; enable_thinking changes the prompt",
    vllm=VllmNeeds("Qwen3ForCausalLM"),
)
