"""Settings of the learner's processes: how many, how they share the base, and what Ray gives each of them."""

from typing import Self

from pydantic import Field, model_validator

from streams.core.settings_section import SettingsSection


class ProcessSettings(SettingsSection):
    """The learner's processes and Ray (docs/concepts/learner.md)."""

    workers: int = Field(default=1, ge=1)
    """Processes that learn together: they divide prompts and backward passes among them and sum the adapter's gradients. When a machine is lost,
    the rest continue with as many processes as there is room for."""
    model_parallel: int = Field(default=1, ge=1)
    """Processes that together hold one copy of the base, each a part of the experts and of the attention heads. Must divide ``workers``."""
    worker_timeout_s: float = Field(default=1800.0, ge=10)
    """The learner ends with an error when one of its processes waits this long for another that neither answers nor has died."""

    ray_address: str | None = None
    """Address of a Ray cluster. None: Ray is started on this machine."""
    ray_num_cpus: float = Field(default=1, ge=0)
    """CPUs that Ray reserves for each of the learner's processes."""
    ray_num_gpus: float = Field(default=0, ge=0)
    """GPUs (fractions allowed) for each of the learner's processes; policy, optimizer and engine share them."""
    ray_object_store_bytes: int = Field(default=80 << 20, ge=75 << 20)
    """Shared memory of a Ray that is started here."""
    ray_metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port of ``/metrics`` of a Ray that is started here. 0: ``metrics_port`` + 6, or a free port when that is 0 too."""

    @model_validator(mode="after")
    def _the_base_divides_the_workers(self) -> Self:
        if self.workers % self.model_parallel:
            raise ValueError(f"learner.model_parallel = {self.model_parallel} does not divide learner.workers = {self.workers}")
        return self
