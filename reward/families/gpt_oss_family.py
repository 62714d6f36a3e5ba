"""gpt-oss: experts with biases, gate and up interleaved, a clamped swiglu, transposed weights; attention with sinks, every other layer windowed."""

from reward.families.model_family import ModelFamily, RoutedExperts, RouterRule, VllmNeeds

GPT_OSS = ModelFamily(
    name="gpt-oss",
    model_types=("gpt_oss",),
    experts=RoutedExperts(
        on_disk="mlp.experts.gate_up_proj, down_proj (MXFP4 blocks and scales)", transposed=True, interleaved=True, biases=True, gate="clamped swiglu"
    ),
    router=RouterRule(module="mlp.router", weights="to one"),
    windows="some layers",
    sinks=True,
    template="gpt-oss: answers are in channels (harmony); the plain text of an answer is its final channel",
    vllm=VllmNeeds("GptOssForCausalLM"),
)
