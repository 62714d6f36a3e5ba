"""Qwen3-MoE (Qwen3-30B-A3B and its sizes), and what `tidemill upcycle` makes of a Qwen3."""

from reward.families.model_family import ModelFamily, RoutedExperts, RouterRule, VllmNeeds

QWEN3_MOE = ModelFamily(
    name="Qwen3-MoE",
    model_types=("qwen3_moe",),
    experts=RoutedExperts(),
    router=RouterRule(weights="as the configuration says"),
    windows="all layers",
    template="Qwen3: earlier answers lose their reasoning; enable_thinking changes the prompt",
    vllm=VllmNeeds("Qwen3MoeForCausalLM", marks_experts_fused=True),
)
