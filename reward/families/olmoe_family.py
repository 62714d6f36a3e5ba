"""OLMoE."""

from reward.families.model_family import ModelFamily, RoutedExperts, RouterRule, VllmNeeds

OLMOE = ModelFamily(
    name="OLMoE",
    model_types=("olmoe",),
    experts=RoutedExperts(),
    router=RouterRule(weights="as the configuration says"),
    template="OLMoE-Instruct: no tools",
    vllm=VllmNeeds("OlmoeForCausalLM", marks_experts_fused=True),
)
