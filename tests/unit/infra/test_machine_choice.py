"""What is chosen on which machine, by tables of rates: precision, threads and layout for learner, actor and features."""

from pathlib import Path

import pytest

from infra.machine.base_shape import SMOLLM2
from infra.machine.machine_choice import MachineChoice, actor_is_open, chosen_for, is_open, learner_is_open
from infra.machine.machine_rates import MachineRates, Precision, WorkRates
from infra.machine.usable_cores import UsableCores, cpu_quota
from infra.settings.config import Settings, load, to_toml

LAYER_FLOP = 2 * 3 * 2 * 576 * 1536
HEAD_FLOP = 2 * 576 * 49152
PLENTY = 64 << 30


def rates_at(dtype: Precision, threads: int, gflops: float, packed_gain: float = 1.0) -> WorkRates:
    """What a machine gives that computes everything at so many GFLOP/s; ``packed_gain``: how much sooner packed products are done."""
    layer, head = LAYER_FLOP / gflops / 1e9, HEAD_FLOP / gflops / 1e9
    passes, heads = (8 * layer, 32 * layer), (8 * head, 32 * head)
    return WorkRates(
        dtype=dtype, threads=threads, layer_pass_s=passes, head_pass_s=heads,
        packed_layer_pass_s=(passes[0] / packed_gain, passes[1] / packed_gain), packed_head_pass_s=(heads[0] / packed_gain, heads[1] / packed_gain),
        forward_token_s=layer, train_token_s=3 * layer, head_token_s=head, train_head_token_s=2 * head, feature_prompt_token_s=layer,
        feature_answer_s=32 * layer,
    )  # fmt: skip


def machine(table: dict[tuple[Precision, int], float], packed_gain: float = 1.0, quota: float | None = None) -> MachineRates:
    cores = max(threads for _, threads in table)
    found = tuple(rates_at(dtype, threads, gflops, packed_gain) for (dtype, threads), gflops in table.items())
    return MachineRates(processor="P", cores=cores, quota=quota or cores, shape=SMOLLM2, rates=found)


XEON = machine({("bfloat16", 1): 73, ("bfloat16", 2): 141, ("float32", 1): 130, ("float32", 2): 247})
"""An Intel Xeon with AVX-512 and bfloat16 instructions but without AMX, as measured."""
EPYC = machine({("bfloat16", 1): 200, ("bfloat16", 2): 380, ("float32", 1): 93, ("float32", 2): 180}, packed_gain=1.5)
"""An AMD EPYC (Zen 4), as measured on one core."""


def choose(rates: MachineRates, *overrides: str, free: int = PLENTY, apart: bool = False) -> MachineChoice:
    return chosen_for(load("laptop", overrides, {}), rates, free, apart)


def precisions(settings: Settings) -> tuple[str, str, str]:
    return settings.learner.dtype, settings.actor.dtype, settings.reward.dtype


def test_each_processor_gets_the_precision_that_it_is_fast_in() -> None:
    assert precisions(choose(XEON).settings) == ("float32", "float32", "float32")
    assert precisions(choose(EPYC).settings) == ("bfloat16", "bfloat16", "bfloat16")


def test_the_choice_is_told_with_both_times() -> None:
    learner, actor, features = choose(XEON).why
    assert learner.startswith("learner: float32 on 2 threads")
    assert "s a step predicted, bfloat16 " in learner
    assert actor.startswith("actor: float32 on 2 threads")
    assert features.startswith("features: float32")


@pytest.mark.parametrize("rates", [XEON, EPYC])
def test_nothing_is_left_open(rates: MachineRates) -> None:
    settings = choose(rates).settings
    assert "auto" not in (*precisions(settings), settings.learner.expert_layout, settings.actor.expert_layout)
    assert not is_open(settings)
    assert min(settings.learner.threads, settings.learner.train_threads, settings.actor.cpu_threads) >= 1
    assert 'dtype = "auto"' not in to_toml(settings)


def test_what_is_set_stays() -> None:
    asked = ("learner.dtype=bfloat16", "learner.threads=1", "learner.expert_layout=plain", "actor.dtype=bfloat16", "actor.cpu_threads=1",
             "reward.dtype=bfloat16")  # fmt: skip
    settings = choose(XEON, *asked).settings
    assert precisions(settings) == ("bfloat16", "bfloat16", "bfloat16")
    assert (settings.learner.threads, settings.learner.train_threads, settings.actor.cpu_threads) == (1, 1, 1)
    assert settings.learner.expert_layout == "plain"
    assert choose(EPYC, "learner.train_threads=1").settings.learner.train_threads == 1


def test_float16_is_the_operators_own_choice() -> None:
    assert choose(XEON, "actor.dtype=float16").settings.actor.dtype == "float16"


def test_a_second_thread_must_earn_its_place() -> None:
    hardly = machine({("bfloat16", 1): 100, ("bfloat16", 2): 105, ("float32", 1): 50, ("float32", 2): 52})
    settings = choose(hardly).settings
    assert (settings.learner.threads, settings.learner.train_threads, settings.actor.cpu_threads) == (1, 1, 1)


@pytest.mark.parametrize(("packed_gain", "layout"), [(1.5, "packed"), (0.7, "plain")])
def test_experts_are_packed_where_that_is_faster(packed_gain: float, layout: str) -> None:
    settings = choose(machine({("bfloat16", 1): 100, ("float32", 1): 50}, packed_gain)).settings
    assert settings.learner.expert_layout == settings.actor.expert_layout == layout


def test_what_a_ring_has_decided_is_measured_no_more() -> None:
    decided = choose(EPYC).settings
    assert not learner_is_open(decided)
    assert not actor_is_open(decided)
    assert learner_is_open(load("laptop", (), {}))
    assert actor_is_open(load("laptop", (), {}))
    assert not is_open(load("tiny", (), {}))


def test_float32_is_left_out_where_memory_is_short() -> None:
    choice = choose(XEON, free=4 << 30)
    assert precisions(choice.settings)[:2] == ("bfloat16", "bfloat16")
    assert any("float32 was not considered" in sentence for sentence in choice.why)
    assert choose(XEON, "learner.dtype=float32", free=4 << 30).settings.learner.dtype == "float32"


def test_parts_that_run_apart_agree_on_the_features() -> None:
    assert choose(XEON, apart=True).settings.reward.dtype == choose(EPYC, apart=True).settings.reward.dtype == "bfloat16"


def test_the_actor_computes_as_the_learner_does_unless_another_precision_is_clearly_faster() -> None:
    nearly = machine({("bfloat16", 1): 100, ("float32", 1): 96})
    assert choose(nearly, "learner.dtype=float32").settings.actor.dtype == "float32"
    assert choose(EPYC, "learner.dtype=float32").settings.actor.dtype == "bfloat16"


def test_a_gpu_computes_in_bfloat16_and_vllm_in_what_the_base_is_stored_in() -> None:
    gpu = XEON.model_copy(update={"gpu": True, "rates": ()})
    assert precisions(choose(gpu).settings) == ("bfloat16", "auto", "bfloat16")


def test_several_processes_share_the_cores() -> None:
    assert choose(XEON, "learner.workers=2").settings.learner.threads == 1


def test_processes_on_other_machines_count_their_own_cores() -> None:
    assert choose(XEON, "learner.ray_address=ray://elsewhere:10001").settings.learner.threads == 0


@pytest.mark.parametrize(("count", "quota", "threads"), [(2, 2.0, 2), (8, 2.5, 2), (8, 0.5, 1), (1, 1.0, 1), (4, 3.9999, 3)])
def test_threads_fit_the_quota(count: int, quota: float, threads: int) -> None:
    assert UsableCores(count, quota).threads == threads


def test_the_quota_is_the_least_of_all_groups_above(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/pod/container\n")
    for folder, limit in (("", None), ("pod", "150000 100000"), ("pod/container", "max 100000")):
        (tmp_path / "sys" / folder).mkdir(parents=True, exist_ok=True)
        if limit:
            (tmp_path / "sys" / folder / "cpu.max").write_text(limit + "\n")
    assert cpu_quota(tmp_path / "sys", own) == pytest.approx(1.5)
    (tmp_path / "sys/pod/container/cpu.max").write_text("50000 100000\n")
    assert cpu_quota(tmp_path / "sys", own) == pytest.approx(0.5)


def test_the_quota_of_older_kernels_is_read(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("4:memory:/x\n3:cpu,cpuacct:/job\n")
    folder = tmp_path / "sys/cpu/job"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("250000")
    (folder / "cpu.cfs_period_us").write_text("100000")
    assert cpu_quota(tmp_path / "sys", own) == pytest.approx(2.5)
    (folder / "cpu.cfs_quota_us").write_text("-1")
    assert cpu_quota(tmp_path / "sys", own) == float("inf")


def test_no_control_group_means_no_limit(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path, tmp_path / "none") == float("inf")
