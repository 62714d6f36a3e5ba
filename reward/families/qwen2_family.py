"""Dense Qwen2 and Qwen2.5: biases on q, k and v."""

from reward.families.model_family import ModelFamily, VllmNeeds

QWEN2 = ModelFamily(
    name="Qwen2",
    model_types=("qwen2",),
    windows="some layers",
    vllm=VllmNeeds("Qwen2ForCausalLM"),
)
