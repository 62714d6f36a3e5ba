"""The learner's settings."""

from typing import Literal, Self

from pydantic import Field, model_validator

from streams.core.settings_section import SettingsSection


class LearnerSettings(SettingsSection):
    """How rewards become adapters. The defaults suit a small base on two cores."""

    # what is trained
    rank: int = Field(default=8, ge=1, le=512)
    """Rank of the adapter."""
    expert_rank: int = Field(default=0, ge=0, le=512)
    """Rank of the adapter on routed experts, of which there are many: a low one keeps it small. 0: as ``rank``. The scale is the same."""
    alpha: float = Field(default=16.0, gt=0)
    """Scale of the adapter: its product is multiplied by alpha / rank."""
    attention_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Modules of attention that carry an adapter. A name that matches nothing is an error."""
    expert_targets: tuple[str, ...] = ("gate_up_proj", "down_proj")
    """Fused parameters of the routed experts that carry an adapter. A name that matches nothing is an error."""
    shared_targets: tuple[str, ...] = ()
    """Modules of the shared experts that carry an adapter, where a base has such (DeepSeek: gate_proj, up_proj, down_proj). A name that matches
    nothing is an error."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the base; the adapter and its optimizer are float32."""
    seed: int = Field(default=0, ge=0)
    """Seed of the adapter's first weights, of the choice of prompts and of sampling."""

    # rollouts
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """Who samples. ``auto``: vLLM on a GPU, transformers on a CPU, where it was the faster of the two."""
    prompts_per_step: int = Field(default=8, ge=1)
    """Prompts sampled in one step; each is a group whose rollouts are set against each other."""
    samples_per_prompt: int = Field(default=4, ge=2)
    """Rollouts in a group; the advantage of one is relative to the others."""
    trained_per_prompt: int = Field(default=0, ge=0)
    """Rollouts of a group that are trained on, the best and the worst of them in equal parts; 0: all. Sampling many and training on few
    sharpens the contrast for less than training on all would cost."""
    max_prompt_tokens: int = Field(default=512, ge=8)
    """Longer prompts are left out of training."""
    max_output_tokens: int = Field(default=48, ge=1)
    """A rollout is cut here."""
    temperature: float = Field(default=1.0, gt=0, le=5)
    """Of sampling and of the policy that is trained: log-probabilities are those of the distribution that was sampled."""
    engine_memory_bytes: int = Field(default=512 << 20, ge=64 << 20)
    """Memory for vLLM's key-value cache."""
    engine_gpu_ratio: float = Field(default=0.4, gt=0, lt=1)
    """Part of a GPU's memory that vLLM takes, weights and cache together."""
    engine_sleeps: bool = True
    """On a GPU vLLM gives that memory up while a step trains, unless rollouts are sampled meanwhile (``sample_ahead``)."""
    threads: int = Field(default=0, ge=0)
    """Threads for sampling and training, which take turns; 0 takes as many as the machine has cores."""

    train_threads: int = Field(default=0, ge=0)
    """Threads for training alone, whose large products bear company on the cores better than sampling's small ones; 0: as ``threads``."""

    # reward guards that need no model
    cut_penalty: float = Field(default=0.0, ge=0)
    """Taken off the reward of a rollout that was cut at max_output_tokens."""
    empty_reward: float = 0.0
    """Reward of an answer without text, whatever the reward model says."""

    # what a step learns from, and how much each counts
    rollout_weight: float = Field(default=1.0, ge=0)
    """Weight of rollouts scored by the reward model."""
    thumb_weight: float = Field(default=0.0, ge=0)
    """Weight of live answers by their labels (KTO, learner/objectives/thumb_objective.py). 0: labels are not followed for it."""
    hindsight_weight: float = Field(default=0.0, ge=0)
    """Weight of comments and corrections: the policy that was told them teaches the one that was not (learner/objectives/hindsight_objective.py)."""
    hindsight_on: Literal["answer", "rewritten"] = "rewritten"
    """On whose tokens a comment teaches: those of the answer as it was given, or of answers that the policy samples once it is told.
    A correction teaches on its own tokens."""
    hindsight_samples: int = Field(default=2, ge=1)
    """Answers sampled for each comment when ``hindsight_on`` is ``rewritten``."""
    hindsight_replies: bool = False
    """Learn from what people said next in the conversation too, where they neither commented nor corrected. It teaches on the tokens of the answer
    as it was given. Next turns come unasked and are many; most of them say little of the answer before."""
    hindsight_teacher: Literal["policy", "base"] = "policy"
    """Who teaches, once told: the policy as it is now, or the base, which learning cannot lead astray. Where words teach alone take the base."""
    judged_per_step: int = Field(default=8, ge=1)
    """Judged answers in a step, half of them with words where there are such."""
    judged_kept: int = Field(default=256, ge=1)
    """Most recently judged answers to draw from."""
    judged_tokens: int = Field(default=256, ge=1)
    """A judged answer or a correction is cut here."""
    kto_beta: float = Field(default=0.1, gt=0)
    """How soon a live answer's gain over the base is enough."""

    # the step
    advantage: Literal["grpo", "dr_grpo", "rloo", "reinforce_pp", "gae"] = "grpo"
    """What a reward is set against (learner/objectives/advantages.py): its group, or with ``gae`` what a value head expected at each token (PPO)."""
    gae_decay: float = Field(default=0.95, ge=0, le=1)
    """How far ahead an advantage looks (lambda): 1 to the reward itself, 0 to the next token's value."""
    value_learning_rate: float = Field(default=0.01, gt=0)
    """Of the value head's AdamW."""
    value_updates: int = Field(default=8, ge=1)
    """The value head's updates in a step; each costs next to nothing."""
    surrogate: Literal["ppo", "gspo", "cispo"] = "ppo"
    """What is maximised (learner/objectives/losses.py): the clipped surrogate of tokens, of sequences, or clipped weights on all tokens."""
    normaliser: Literal["tokens", "budget"] = "tokens"
    """What the sum over tokens is divided by: the tokens there are (DAPO), or rollouts x max_output_tokens (Dr. GRPO)."""
    updates_per_step: int = Field(default=1, ge=1)
    """Optimizer updates on the same rollouts."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of AdamW, constant."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of AdamW."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    clip_low: float = Field(default=0.2, ge=0, lt=1)
    """The ratio's lower bound is 1 - clip_low."""
    clip_high: float = Field(default=0.28, ge=0)
    """The ratio's upper bound is 1 + clip_high; wider than below, so that rare tokens can rise (DAPO)."""
    kl_coefficient: float = Field(default=0.02, ge=0)
    """Weight of the KL to the base; 0 leaves the base's forward pass out."""
    kl_target_nats: float = Field(default=0.0, ge=0)
    """KL to the base, a token, that the weight is steered towards: it rises while the policy is further away and falls while it is nearer, from
    ``kl_coefficient`` on. 0: the weight stays as it is."""
    kl_groups_ratio: float = Field(default=0.25, gt=0, le=1)
    """Part of the groups, others in each step, on which the KL is measured and paid for all: the base's pass is a fourth of training."""
    importance: Literal["token", "sequence"] = "token"
    """Whether the gap between engine and trainer is corrected token by token or answer by answer."""
    importance_cap: float = Field(default=2.0, ge=1)
    """Truncation of the ratio between trainer and engine (TIS)."""
    importance_floor: float = Field(default=0.0, ge=0, le=1)
    """What engine and trainer disagree on so far that the ratio lies below this is left out of training; 0: nothing is."""
    importance_ceiling: float = Field(default=0.0, ge=0)
    """The same for ratios above this; 0: nothing is. Beyond it a token teaches nothing, where ``importance_cap`` alone would let it teach a bit."""
    replay_routing: bool = False
    """The experts that the engine chose are those that the trainer uses (learner/rollouts/router_replay.py). With the transformers engine."""
    max_policy_lag: int = Field(default=4, ge=0)
    """Oldest rollout worth learning from, in steps behind the newest; older ones are counted and dropped, with their group."""
    entropy_alarm_nats: float = Field(default=0.05, ge=0)
    """Below this mean entropy a token the policy has collapsed: it says the same whatever is asked, and an alert tells so. 0: no alarm."""
    microbatch_tokens: int = Field(default=1024, ge=1)
    """Tokens (prompts counted once a group) in one forward pass; a larger group goes alone."""
    sample_ahead: bool = False
    """While a step trains, the next step's rollouts are sampled, from the policy before it, on half of the threads each."""
    recompute_activations: bool = False
    """Keep no layer's inner activations for the backward pass but compute them again there: more time for much less memory."""

    # many processes (docs/concepts/learner.md)
    workers: int = Field(default=1, ge=1)
    """Processes that learn together: they share out prompts and backward passes and sum the adapter's gradients. When a machine is lost the
    others go on, as many as there is room for."""
    model_parallel: int = Field(default=1, ge=1)
    """Processes that hold one copy of the base together, each its part of the experts and of attention's heads. Divides ``workers``."""
    worker_timeout_s: float = Field(default=1800.0, ge=10)
    """A process that has waited so long for another one, which neither answers nor has died, ends the learner with an error."""

    # the loop
    prompts_kept: int = Field(default=256, ge=1)
    """Most recent distinct prompts to draw from."""
    prompts_needed: int = Field(default=8, ge=1)
    """Distinct prompts to wait for before the first step."""
    max_steps: int = Field(default=0, ge=0)
    """Stop after this many steps; 0: no end."""
    publish_every: int = Field(default=1, ge=1)
    """Steps between published adapters."""
    checkpoint_every: int = Field(default=1, ge=1)
    """Steps between checkpoints."""
    probes: int = Field(default=4, ge=1, le=64)
    """Probe prompts stored with an adapter, by which a replica proves that it serves it."""

    # Ray
    ray_address: str | None = None
    """Address of a Ray cluster; none starts one in this machine."""
    ray_num_cpus: float = Field(default=1, ge=0)
    """CPUs that Ray sets aside for each of the learner's processes."""
    ray_num_gpus: float = Field(default=0, ge=0)
    """GPUs (fractions allowed) for each of the learner's processes: policy, optimizer and engine share them."""
    ray_object_store_bytes: int = Field(default=80 << 20, ge=75 << 20)
    """Shared memory of a Ray started here."""
    ray_metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port of the ``/metrics`` of a Ray started here; 0: six above ``metrics_port``, and without that a free one."""

    @model_validator(mode="after")
    def _something_is_trained(self) -> Self:
        if not (self.attention_targets or self.expert_targets or self.shared_targets):
            raise ValueError("learner.attention_targets, expert_targets and shared_targets are all empty: nothing would be trained")
        return self

    @model_validator(mode="after")
    def _something_is_learned_from(self) -> Self:
        if not (self.rollout_weight or self.thumb_weight or self.hindsight_weight):
            raise ValueError("learner.rollout_weight, thumb_weight and hindsight_weight are all 0: nothing would be learned from")
        return self

    @model_validator(mode="after")
    def _replies_teach_by_hindsight(self) -> Self:
        if self.hindsight_replies and not self.hindsight_weight:
            raise ValueError("learner.hindsight_replies has no use while learner.hindsight_weight is 0")
        return self

    @model_validator(mode="after")
    def _one_advantage_a_sequence(self) -> Self:
        if self.advantage == "gae" and self.surrogate == "gspo":
            raise ValueError("learner.surrogate = gspo has one ratio a sequence and needs one advantage a sequence: not learner.advantage = gae")
        return self

    @model_validator(mode="after")
    def _the_range_holds_one(self) -> Self:
        if 0 < self.importance_ceiling < 1:
            raise ValueError(f"learner.importance_ceiling = {self.importance_ceiling} must be 0 or at least 1: it would leave out what both agree on")
        return self

    @property
    def learns_from_judged(self) -> bool:
        """True when labels are followed for what people said of live answers."""
        return bool(self.thumb_weight or self.hindsight_weight)

    @model_validator(mode="after")
    def _processes_can_share_the_work(self) -> Self:
        if self.workers % self.model_parallel:
            raise ValueError(f"learner.model_parallel = {self.model_parallel} does not divide learner.workers = {self.workers}")
        if self.model_parallel > 1 and self.engine == "vllm":
            raise ValueError("learner.engine = vllm holds a whole base on one device; with learner.model_parallel above 1 use transformers")
        if self.sample_ahead and (self.max_policy_lag == 0 or self.model_parallel > 1):
            raise ValueError("learner.sample_ahead needs learner.max_policy_lag of at least 1, and a base that is whole (learner.model_parallel = 1)")
        if self.advantage == "gae" and self.workers > self.model_parallel:
            raise ValueError("learner.advantage = gae fits its value head in one process: learner.workers must equal learner.model_parallel")
        return self

    @model_validator(mode="after")
    def _trains_on_what_it_samples(self) -> Self:
        if self.trained_per_prompt and not 2 <= self.trained_per_prompt <= self.samples_per_prompt:
            raise ValueError(f"learner.trained_per_prompt = {self.trained_per_prompt} must be 0 or lie between 2 and samples_per_prompt")
        return self

    @model_validator(mode="after")
    def _waits_for_no_more_than_it_keeps(self) -> Self:
        if self.prompts_needed > self.prompts_kept:
            raise ValueError(f"learner.prompts_needed = {self.prompts_needed} exceeds learner.prompts_kept = {self.prompts_kept}")
        return self
