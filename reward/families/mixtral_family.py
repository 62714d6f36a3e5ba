"""Mixtral, and what `tidemill upcycle` makes of a Llama or Mistral."""

from reward.families.model_family import ModelFamily, RoutedExperts, RouterRule, VllmNeeds

MIXTRAL = ModelFamily(
    name="Mixtral",
    model_types=("mixtral",),
    experts=RoutedExperts(on_disk="block_sparse_moe.experts.N.w1, w2, w3"),
    router=RouterRule(weights="to one"),
    windows="all layers",
    template="Mixtral-8x7B-Instruct: roles must take turns, no system message, no tools",
    vllm=VllmNeeds("MixtralForCausalLM", renames={".mlp.experts.": ".block_sparse_moe.experts."}, marks_experts_fused=True),
)
