"""Benchmarks that need nothing beyond the ring's own packages can be started: what is not run every day breaks unseen."""

import importlib

import pytest


@pytest.mark.parametrize("name", ["benchmarks.streams", "benchmarks.soak", "benchmarks.reward_latency", "benchmarks.lora_serving", "benchmarks.gpu"])
def test_a_benchmark_can_be_imported(name: str) -> None:
    assert callable(importlib.import_module(name).main)
