"""DeepSeek-V3, whose architecture Kimi-K2 has too: latent attention (MLA), shared experts beside the routed ones, sigmoid routing."""

from reward.families.model_family import ModelFamily, RoutedExperts, RouterRule, VllmNeeds

FOLDED = "vLLM folds its weight into latent attention once, when it loads the base, so that an adapter on it acts on prompts and not on answers"
DEEPSEEK_V3 = ModelFamily(
    name="DeepSeek-V3",
    model_types=("deepseek_v3", "kimi_k2"),
    attention=("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
    experts=RoutedExperts(),
    shared="shared_experts",
    router=RouterRule(scores="sigmoid", weights="to one, scaled"),
    template="DeepSeek-V3: arguments of tool calls must be text",
    vllm=VllmNeeds("DeepseekV3ForCausalLM", marks_experts_fused=True, unserved={"kv_b_proj": FOLDED}),
)
