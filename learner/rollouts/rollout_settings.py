"""Settings of rollouts: which engine samples, how many answers, and how old they may be."""

from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from streams.core.settings_section import SettingsSection


class RolloutSettings(SettingsSection):
    """Rollouts: which engine samples, how many answers, how long, how old."""

    engine: Literal["auto", "vllm", "transformers", "actor"] = "auto"
    """The engine that samples. ``auto``: vLLM in the learner's process on a GPU, transformers on a CPU (measured to be the faster of the two there).
    ``actor``: the actors' own vLLM over HTTP, with published adapters: the base lies on the engine's device once, and people come first."""
    rollout_url: str | None = None
    """With ``engine = "actor"``: base URL of the actors' API. None: the actor of this ring."""
    rollout_key: SecretStr | None = None
    """With ``engine = "actor"``: an API key with the scope ``rollout``, where the actors require keys. Set it by the environment."""
    rollout_requests: int = Field(default=64, ge=1, le=4096)
    """With ``engine = "actor"``: requests at the same time, each for the rollouts of one prompt."""
    rollout_timeout_s: float = Field(default=600.0, gt=0)
    """With ``engine = "actor"``: longest wait for one request. People come first, so a busy actor may take long."""
    rollout_patience_s: float = Field(default=1800.0, gt=0)
    """With ``engine = "actor"``: the step is given up, and begun again, when actors fail, or serve no adapter that is young enough, for so long."""
    prompts_per_step: int = Field(default=8, ge=1)
    """Prompts sampled in one step. The rollouts of one prompt form a group and are compared with each other."""
    samples_per_prompt: int = Field(default=4, ge=2)
    """Rollouts in a group. The advantage of each is relative to the others."""
    trained_per_prompt: int = Field(default=0, ge=0)
    """Rollouts of a group that are trained on: the best and the worst, in equal parts. 0: all of them. Sampling many and training on few gives
    more contrast at a lower cost than training on all."""
    resample_tries: int = Field(default=0, ge=0, le=20)
    """Dynamic sampling (DAPO): how often a group whose rewards are all the same, which teaches nothing, is drawn again in a step. 0: never."""
    least_spread: float = Field(default=0.0, ge=0)
    """With ``resample_tries``, rewards that differ by no more than this count as the same."""
    max_prompt_tokens: int = Field(default=512, ge=8)
    """Prompts longer than this are not used for training."""
    max_output_tokens: int = Field(default=48, ge=1)
    """A rollout is truncated at this length."""
    temperature: float = Field(default=1.0, gt=0, le=5)
    """Temperature of sampling. Training uses the log-probabilities of the same, tempered distribution."""
    engine_memory_bytes: int = Field(default=512 << 20, ge=64 << 20)
    """Memory for vLLM's key-value cache on a CPU."""
    engine_gpu_ratio: float = Field(default=0.4, gt=0, lt=1)
    """Part of a GPU's memory that vLLM uses, weights and cache together."""
    engine_sleeps: bool = True
    """On a GPU, vLLM frees that memory while a step trains, except when rollouts are sampled at the same time (``sample_ahead``)."""
    sample_ahead: bool = False
    """Sample the next step's rollouts while a step trains, from the policy before that step. Sampling and training then use half of the threads
    each."""
    max_policy_lag: int = Field(default=4, ge=0)
    """Oldest rollout to learn from, in steps behind the newest policy. Older ones are counted and dropped together with their group."""
    replay_routing: bool = False
    """Router replay: the trainer uses the experts that the engine chose (learner/rollouts/router_replay.py). Needs the transformers engine."""

    @model_validator(mode="after")
    def _trains_on_what_it_samples(self) -> Self:
        if self.trained_per_prompt and not 2 <= self.trained_per_prompt <= self.samples_per_prompt:
            raise ValueError(
                f"learner.trained_per_prompt = {self.trained_per_prompt} must be 0 or lie between 2 and"
                f" learner.samples_per_prompt = {self.samples_per_prompt}"
            )
        return self
