"""The policy on the tiny base: what it computes equals the dense model, PEFT's own, and each sequence on its own."""

import random
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, MistralConfig, MixtralForCausalLM, Qwen3Config

from infra.cli.main import main
from learner.models.base_cache import CHECKSUMS, prepare_base
from learner.models.lora_policy import ADAPTER_FILES, Policy
from learner.models.sequence_packing import Branches, microbatches, pack
from learner.models.sparse_upcycling import upcycle
from learner.settings import LearnerSettings
from streams.core.errors import BadArtifact, ConfigError

ROWS = (Branches((1, 50, 900, 44), ((3, 4, 5), (8,), (9, 10, 11, 2))), Branches((1, 7), ((3, 4, 5, 6, 7), (60, 2))))


@pytest.fixture
def base(tiny_base: Path) -> Path:
    return tiny_base


def moved_policy(base: Path, **settings: object) -> Policy:
    """A policy whose adapter does something: float32, weights of both factors random."""
    policy = Policy(base, LearnerSettings(**({"dtype": "float32"} | settings)))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters.values():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return policy


def alone(model: object, rows: tuple[Branches, ...], temperature: float = 1.0) -> list[list[float]]:
    """Each output's logprobs from a pass of its own over prompt + output."""
    found = []
    for row in rows:
        for output in row.outputs:
            logits = model(torch.tensor([row.prompt_ids + output])).logits[0].float() / temperature  # type: ignore[operator]
            logprobs = torch.log_softmax(logits, -1)
            found.append([float(logprobs[len(row.prompt_ids) - 1 + n, token]) for n, token in enumerate(output)])
    return found


def by_output(values_BT: torch.Tensor, mask_BT: torch.Tensor) -> list[list[float]]:
    return [values[mask].tolist() for values, mask in zip(values_BT, mask_BT, strict=True)]


def assert_close(found: list[list[float]], expected: list[list[float]], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=tolerance)


def test_an_upcycled_mixture_answers_as_the_dense_model_does(base: Path) -> None:
    dense = LlamaForCausalLM.from_pretrained(base / "dense", dtype=torch.float32)
    ids = torch.tensor([[1, 5, 9, 300, 20000, 41, 2]])
    for experts, per_token in ((4, 2), (8, 3), (1, 1)):
        moe = upcycle(dense, experts, per_token)
        with torch.no_grad():
            assert (moe(ids).logits - dense(ids).logits).abs().max() < 1e-4
    stored = MixtralForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        assert (stored(ids).logits - dense(ids).logits).abs().max() < 1e-4


def test_a_qwen3_and_a_mistral_are_upcycled_by_command_and_answer_as_before(base: Path, tmp_path: Path) -> None:
    shape = {"vocab_size": 49152, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
             "pad_token_id": 2}  # fmt: skip
    ids = torch.tensor([[1, 100, 2000, 30000, 5, 77]])
    for config in (Qwen3Config(**shape), MistralConfig(**shape, sliding_window=None)):
        dense, out = tmp_path / config.model_type, tmp_path / f"{config.model_type}-moe"
        AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(dense)
        AutoTokenizer.from_pretrained(str(base)).save_pretrained(dense)
        done = CliRunner().invoke(main, ["upcycle", str(dense), str(out), "--experts", "3", "--per-token", "2"])
        assert done.exit_code == 0, done.output
        models = [AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32) for folder in (dense, out, out / "dense")]
        with torch.no_grad():
            before, after, kept = (model(ids).logits for model in models)
        assert float((before - after).abs().max()) < 1e-4
        assert torch.equal(before, kept)
        assert f"{sum(p.numel() for p in models[1].parameters()) / 1e6:.0f} M" in done.output
        assert Policy(out, LearnerSettings()).targets[-1] == "mlp.experts.down_proj"  # a base that can be trained
        again = CliRunner().invoke(main, ["upcycle", str(dense), str(out)])
        assert (again.exit_code, "exists" in again.output) == (1, True)


def test_what_has_no_mixture_is_refused_in_words(base: Path, tmp_path: Path) -> None:
    refused = CliRunner().invoke(main, ["upcycle", str(base), str(tmp_path / "out")])
    assert (refused.exit_code, "a mixtral cannot be upcycled, only llama, mistral, qwen3" in refused.output) == (1, True)
    (tmp_path / "empty").mkdir()
    assert "holds no model" in CliRunner().invoke(main, ["upcycle", str(tmp_path / "empty"), str(tmp_path / "out")]).output
    assert not (tmp_path / "out").exists()


def test_a_base_is_built_once_and_an_altered_one_is_refused(tmp_path: Path, base: Path) -> None:
    before = (base / "model.safetensors").stat().st_mtime_ns
    assert prepare_base("tiny", base.parent) == base
    assert (base / "model.safetensors").stat().st_mtime_ns == before
    other = prepare_base("tiny", tmp_path)
    assert (other / CHECKSUMS).read_text() == (base / CHECKSUMS).read_text()  # the same bytes anywhere
    weights = other / "dense" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BadArtifact, match="delete"):
        prepare_base("tiny", tmp_path)


def test_more_experts_a_token_than_experts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="5 experts per token of 4"):
        prepare_base("tiny", tmp_path, experts=4, per_token=5)


@pytest.mark.parametrize("expert_rank", [0, 3])
def test_packed_groups_give_each_sequence_the_logprobs_it_has_alone_under_pefts_own_forward(base: Path, tmp_path: Path, expert_rank: int) -> None:
    policy = moved_policy(base, expert_rank=expert_rank)
    ranks = {weight.shape[0] for name, weight in policy.parameters.items() if ".experts." not in name and "lora_A" in name}
    of_experts = {weight.shape[0] // 4 for name, weight in policy.parameters.items() if ".experts." in name and "lora_A" in name}
    assert (ranks, of_experts) == ({8}, {expert_rank or 8})
    policy.save_adapter(tmp_path / "adapter")
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "adapter")
    packed = pack(ROWS, padding_id=2)
    with torch.no_grad():
        for temperature in (1.0, 0.7):
            found = policy.stats(packed, temperature)
            assert_close(by_output(found.logprobs_BT, packed.mask_BT), alone(peft, ROWS, temperature), 1e-4)


def test_gradients_are_those_of_pefts_own_forward(base: Path, tmp_path: Path) -> None:
    policy = moved_policy(base)
    policy.save_adapter(tmp_path / "adapter")
    packed = pack(ROWS, padding_id=2)
    policy.stats(packed).logprobs_BT.sum().backward()
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "adapter", is_trainable=True)
    for row in ROWS:
        for output in row.outputs:
            logprobs = torch.log_softmax(peft(torch.tensor([row.prompt_ids + output])).logits[0], -1)
            logprobs[range(len(row.prompt_ids) - 1, len(row.prompt_ids) - 1 + len(output)), list(output)].sum().backward()
    theirs = dict(peft.named_parameters())
    for name, weight in policy.parameters.items():
        assert weight.grad is not None
        assert torch.allclose(weight.grad, theirs[name].grad, atol=1e-3, rtol=1e-3), name


def test_with_the_adapter_off_the_policy_is_its_base(base: Path) -> None:
    policy = moved_policy(base)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    packed = pack(ROWS, padding_id=2)
    with torch.no_grad():
        with policy.reference():
            off = policy.stats(packed).logprobs_BT
        on = policy.stats(packed).logprobs_BT
        assert_close(by_output(off, packed.mask_BT), alone(plain, ROWS), 1e-5)
    assert (on - off)[packed.mask_BT].abs().mean() > 0.1


def test_only_the_adapter_takes_gradients_in_float32_over_a_bfloat16_base(base: Path) -> None:
    policy = Policy(base, LearnerSettings())
    assert {p.dtype for p in policy.parameters.values()} == {torch.float32}
    assert all("lora_" in name for name in policy.parameters)
    assert any("experts" in name for name in policy.parameters)
    frozen = [p for name, p in policy.causal_lm.named_parameters() if "lora_" not in name]
    assert {p.dtype for p in frozen} == {torch.bfloat16}
    policy.stats(pack(ROWS, 2)).logprobs_BT.sum().backward()
    assert all(p.grad is None for p in frozen)


def test_a_fresh_adapter_changes_nothing_and_is_the_same_for_the_same_seed(base: Path) -> None:
    one, two, other = (Policy(base, LearnerSettings(dtype="float32", seed=seed)) for seed in (3, 3, 4))
    packed = pack(ROWS, 2)
    with torch.no_grad(), one.reference():
        reference = one.stats(packed).logprobs_BT
    assert torch.allclose(one.stats(packed).logprobs_BT, reference, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters.values(), two.parameters.values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters.values(), other.parameters.values(), strict=True))


@pytest.mark.parametrize(("setting", "name"), [("attention_targets", "query_proj"), ("expert_targets", "w1")])
def test_a_target_that_matches_nothing_is_an_error(base: Path, setting: str, name: str) -> None:
    kept = getattr(LearnerSettings(), setting)
    with pytest.raises(ConfigError, match=name):
        Policy(base, LearnerSettings.model_validate({setting: (*kept, name)}))


def test_a_saved_adapter_comes_back_bit_for_bit_and_another_shape_is_refused(base: Path, tmp_path: Path) -> None:
    policy, other = moved_policy(base), Policy(base, LearnerSettings(dtype="float32"))
    policy.save_adapter(tmp_path / "a")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(ADAPTER_FILES)
    other.load_adapter(tmp_path / "a")
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters.values(), other.parameters.values(), strict=True))
    narrow = Policy(base, LearnerSettings(dtype="float32", rank=4))
    with pytest.raises(BadArtifact, match="other names or shapes"):
        narrow.load_adapter(tmp_path / "a")
    (tmp_path / "a" / ADAPTER_FILES[0]).write_bytes(b"rubbish")
    with pytest.raises(BadArtifact, match="no readable adapter"):
        other.load_adapter(tmp_path / "a")


def test_microbatches_take_every_row_once_within_the_limit() -> None:
    chance = random.Random(0)
    rows = [Branches((1,) * chance.randint(1, 50), ((3,) * chance.randint(0, 30), (4,) * chance.randint(0, 30))) for _ in range(40)]
    batches = microbatches(rows, 200)
    assert sorted(n for batch in batches for n in batch) == list(range(40))
    assert all(len(batch) == 1 or max(rows[n].tokens for n in batch) * len(batch) <= 200 for batch in batches)
    assert len(batches) < 40
