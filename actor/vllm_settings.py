"""Settings of the vLLM engine that answers in an actor."""

from typing import Literal

from pydantic import Field, field_validator

from streams.core.settings_section import SettingsSection


class VllmSettings(SettingsSection):
    """The vLLM engine: precision, memory, threads, adapters in one batch."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Precision of the base. ``auto``: on a CPU the faster one on this machine, by a short measurement before the ring or the actor starts; on a
    GPU the precision it is stored in."""
    expert_layout: Literal["auto", "plain", "packed"] = "auto"
    """How a CPU keeps the experts' weights. ``packed``: in oneDNN's own layout, which spares a rearrangement at every product. ``auto``: the faster
    one on this machine, as for ``dtype``; packed in bfloat16 without a measurement."""
    max_model_tokens: int = Field(default=2048, ge=16, le=1_000_000)
    """Longest prompt and answer together."""
    max_concurrent: int = Field(default=64, ge=1, le=4096)
    """Answers generated at the same time. More requests wait."""
    kv_cache_gib: int = Field(default=1, ge=1, le=1024)
    """Memory for the key-value cache on a CPU."""
    cpu_threads: int = Field(default=0, ge=0, le=1024)
    """Threads for matrix products on a CPU. 0: as many as are fastest on this machine, as for ``dtype``."""
    gpu_memory_ratio: float = Field(default=0.9, gt=0, le=1)
    """Part of a GPU's memory that vLLM uses, weights, adapters and key-value cache together. Smaller where the learner computes on the same GPU."""
    enforce_eager: bool | Literal["auto"] = "auto"
    """Do not compile the model and record no CUDA graphs at the start. ``auto``: true on a CPU, where vLLM with LoRA never compiles; false on a GPU,
    where answers are faster for a longer start."""
    max_loras: int = Field(default=4, ge=2, le=64)
    """Adapters that one batch may mix: production, the one before it, and new ones."""
    max_rank: Literal[8, 16, 32, 64, 128, 256] = 16
    """Largest LoRA rank that is accepted. Memory for this rank is reserved ``max_loras`` times."""
    fork_engine: bool = True
    """On a CPU, fork the engine's process instead of starting it anew, which saves importing everything twice."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "WARNING"
    """Level of vLLM's own log."""
    engine_metrics: bool = True
    """Serve vLLM's own metrics (``vllm:…``) on ``/metrics`` too."""
    vllm_args: tuple[str, ...] = ()
    """Further arguments of vLLM's server, as on its command line: ``["--tensor-parallel-size=2", "--quantization=fp8"]``. Read by vLLM's own parser
    before a model is loaded; what another setting decides is refused with that setting's name."""
    tool_call_parser: str | None = None
    """Name of vLLM's parser that turns the model's text into tool calls. None: only tool calls that vLLM forces."""

    @field_validator("max_rank", mode="before")
    @classmethod
    def _rank_from_a_flag(cls, rank: object) -> object:
        return int(rank) if isinstance(rank, str) and rank.isdecimal() else rank  # pydantic reads numbers from text, but not among literals
