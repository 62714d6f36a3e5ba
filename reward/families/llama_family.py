"""Dense Llama, and Mistral, which differs in its sliding window alone."""

from reward.families.model_family import ModelFamily, VllmNeeds

LLAMA = ModelFamily(
    name="Llama",
    model_types=("llama",),
    template="Llama 2: roles must take turns; Llama 3: none known",
    vllm=VllmNeeds("LlamaForCausalLM"),
)
MISTRAL = ModelFamily(
    name="Mistral",
    model_types=("mistral",),
    windows="all layers",
    template="Mistral-Instruct: roles must take turns",
    vllm=VllmNeeds("MistralForCausalLM"),
)
