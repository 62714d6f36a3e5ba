"""What `tidemill doctor --base` says of a folder before anything starts."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.cli.main import main
from infra.operate import doctor
from infra.operate.doctor_base import examine_base
from infra.planner.machine_memory import MachineMemory
from infra.settings.config import load
from tests.support.tiny_models import tiny_model

STRICT = """
{%- for m in messages -%}{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('roles must take turns') }}{%- endif -%}
{{ m['content'] }}{%- endfor -%}
"""


def told(folder: Path, *overrides: str) -> dict[str, tuple[bool, str]]:
    return {finding.name: (finding.ok, str(finding)) for finding in examine_base(folder, load(None, overrides))}


@pytest.fixture(autouse=True)
def large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "machine_memory", lambda: MachineMemory(64 << 30))


@pytest.fixture(scope="module")
def qwen3_moe(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("qwen3_moe", tmp_path_factory.mktemp("doctor"), tiny_base)


def test_a_mixture_is_told_with_its_experts_targets_and_memory_and_what_is_missing(qwen3_moe: Path, tiny_base: Path) -> None:
    found = told(qwen3_moe)
    assert "Qwen3-MoE (qwen3_moe), 0.01 billion parameters" in found["base"][1]
    assert "4 experts, 2 a token; the learner computes them in factored form" in found["experts"][1]
    assert "q_proj, k_proj, v_proj, o_proj, experts' gate_up_proj, experts' down_proj" in found["targets"][1]
    assert {name for name, (ok, _) in found.items() if not ok} == {"reward", "memory"}
    assert "set reward.backbone to a small dense model's folder" in found["reward"][1]
    assert all(ok for ok, _ in told(qwen3_moe, f"reward.backbone={tiny_base / 'dense'}").values())


def test_a_dense_base_is_its_own_backbone(tiny_base: Path, tmp_path: Path) -> None:
    found = told(tiny_model("qwen3", tmp_path, tiny_base))
    assert all(ok for ok, _ in found.values()), found
    assert "dense: no routed experts" in found["experts"][1]


@pytest.mark.parametrize(
    ("override", "finding", "sentence"),
    [
        ("learner.rank=32", "rank", "learner.rank = 32, actor.max_rank = 16"),
        ("learner.attention_targets=query_proj", "targets", "no weight of this base is named query_proj"),
        ("learner.expert_targets=down_proj", "targets", r"vLLM serves both (gate_up_proj, down_proj) or none"),
    ],
)
def test_settings_that_do_not_fit_the_base_are_told(qwen3_moe: Path, override: str, finding: str, sentence: str) -> None:
    ok, found = told(qwen3_moe, override)[finding]
    assert not ok
    assert sentence in found


def test_a_machine_that_is_too_small_is_told(qwen3_moe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "machine_memory", lambda: MachineMemory(1 << 20))
    assert told(qwen3_moe)["memory"][0] is False


def test_what_the_chat_template_refuses_is_tried(tiny_base: Path, tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path, tiny_base)
    (folder / "chat_template.jinja").write_text(STRICT)
    ok, found = told(folder)["template"]
    assert ok
    assert "refuses a system message, two questions in a row, an answer first, a tool's result" in found
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert told(folder)["template"][0] is False


def test_the_command_exits_with_1_where_something_is_to_be_done(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = CliRunner().invoke(main, ["doctor", "--base", str(tmp_path / "empty")])
    assert done.exit_code == 1
    assert "has no config.json" in done.output
