"""How often the learner publishes, saves and evaluates, what it holds out, and how far it goes on without labels."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from learner.models.lora_policy import Policy
from learner.ring.fresh_labels import FreshLabels
from learner.ring.held_out_evaluation import HeldOutEvaluation
from learner.ring.learner_loop_settings import LearnerLoopSettings, steps_by_size
from learner.ring.prompt_pool import PromptPool
from learner.rollouts.rollout_engines import TransformersEngine
from learner.runs import checkpoint
from learner.runs.step_progress import LearnerProgress
from learner.runs.trainer import Prompt, Trainer, flat_groups
from learner.settings import LearnerSettings
from streams.core.errors import BadArtifact
from streams.core.events import AdapterVersion, Artifact, Episode, Label, Message
from tests.unit.learner.test_training_step import ASKED, says_e

pytestmark = pytest.mark.usefixtures("torch_threads")
AT = datetime(2030, 1, 1, tzinfo=UTC)
SETTINGS = LearnerSettings(dtype="float32", max_output_tokens=6, samples_per_prompt=2, learning_rate=0.01)
MIB = 1 << 20


def test_large_adapters_are_published_less_often() -> None:
    assert [steps_by_size(size) for size in (0, 25 * MIB, 128 * MIB, 129 * MIB, 1300 * MIB, 90_000 * MIB)] == [1, 1, 1, 2, 11, 20]
    by_size, every_third = LearnerLoopSettings(max_steps=25), LearnerLoopSettings(publish_every=3, checkpoint_every=5, max_steps=7)
    assert [step for step in range(1, 26) if by_size.publishes(step, 1300 * MIB)] == [11, 22, 25]  # the last one too
    assert [step for step in range(1, 8) if every_third.publishes(step, 1300 * MIB)] == [3, 6, 7]
    assert [step for step in range(1, 8) if every_third.saves(step, 1)] == [5, 7]
    assert all(by_size.saves(step, MIB) for step in range(1, 26))


def test_so_many_checkpoints_are_kept_as_the_setting_says(tiny_base: Path, tmp_path: Path) -> None:
    def trainer() -> Trainer:
        policy = Policy(tiny_base, SETTINGS)
        return Trainer(policy, TransformersEngine(policy), SETTINGS)

    one, weights = trainer(), {}
    for _ in range(3):
        one.step(ASKED, says_e)
        checkpoint.save(one, tmp_path, kept=2)
        weights[one.step_number] = {name: weight.clone() for name, weight in one.policy.parameters.items()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000002", "00000003"]
    (tmp_path / "00000003" / checkpoint.STATE).write_text("damaged")
    with pytest.raises(BadArtifact, match="delete it to go on from step 2"):
        checkpoint.load(trainer(), tmp_path)
    for path in (tmp_path / "00000003").iterdir():
        path.unlink()
    (tmp_path / "00000003").rmdir()
    again = trainer()
    assert checkpoint.load(again, tmp_path) == 2
    assert all(torch.equal(weight, weights[2][name]) for name, weight in again.policy.parameters.items())
    again.step(ASKED, says_e)
    assert all(torch.equal(weight, weights[3][name]) for name, weight in again.policy.parameters.items())  # the very step again


def test_groups_without_spread_are_found() -> None:
    rewards = torch.tensor([0.5, 0.5, 0.5, 0.1, 0.5, 0.5, 0.3, 0.3, 0.31])
    assert flat_groups(rewards, 3, 0.0) == [0]
    assert flat_groups(rewards, 3, 0.02) == [0, 2]
    assert flat_groups(torch.empty(0), 3, 0.0) == []


@pytest.mark.parametrize("tries", [0, 1, 3])
def test_groups_whose_rewards_are_all_the_same_are_drawn_again_so_many_times(tiny_base: Path, tries: int) -> None:
    settings = SETTINGS.model_copy(update={"resample_tries": tries})
    policy = Policy(tiny_base, settings)
    one, asked = Trainer(policy, TransformersEngine(policy), settings), []

    def scorer(pairs: list[tuple[Prompt, str]]) -> list[float]:
        """The first question's answers are all alike until the third time; the second's never are."""
        asked.append([prompt[-1].text for prompt, _ in pairs])
        first = ASKED[0][-1].text
        return [float(n % 2) if prompt[-1].text != first or len(asked) == 3 else 0.5 for n, (prompt, _) in enumerate(pairs)]

    result = one.step(ASKED[:2], scorer)
    assert len(asked) == 1 + min(tries, 2)
    assert all(set(texts) == {ASKED[0][-1].text} for texts in asked[1:])  # the other group is not drawn again
    assert result.metrics["flat_groups_ratio"] == 0.5
    assert result.metrics["resample_tries"] == min(tries, 2)
    assert result.rewards[:2] == ((0.0, 1.0) if tries == 3 else (0.5, 0.5))
    assert (result.metrics["gradient_norm"] > 0) is True


def test_what_is_drawn_again_is_new_and_the_same_for_the_same_seed(tiny_base: Path) -> None:
    settings = SETTINGS.model_copy(update={"resample_tries": 2, "max_output_tokens": 12})

    def answers() -> list[tuple[str, ...]]:
        policy, told = Policy(tiny_base, settings), []
        Trainer(policy, TransformersEngine(policy), settings).step(
            ASKED[:1], lambda pairs: told.append(tuple(a for _, a in pairs)) or [0.5] * len(pairs)
        )
        return told

    first = answers()
    assert len(set(first)) == 3
    assert answers() == first


def test_an_evaluation_changes_nothing_and_answers_alike_each_time(tiny_base: Path) -> None:
    policies = [Policy(tiny_base, SETTINGS) for _ in range(2)]
    one, other = (Trainer(policy, TransformersEngine(policy), SETTINGS) for policy in policies)
    told = [one.evaluate(ASKED, says_e), one.evaluate(ASKED, says_e)]
    assert told[0] == told[1]
    assert told[0]["evaluation_prompts"] == len(ASKED)
    assert 1 <= told[0]["evaluation_output_tokens"] <= 6
    one.step(ASKED, says_e)
    other.step(ASKED, says_e)
    assert all(torch.equal(a, b) for a, b in zip(*(policy.parameters.values() for policy in policies), strict=True))
    scored = one.evaluate(ASKED, lambda pairs: [float(n) for n in range(len(pairs))])
    count = len(ASKED)
    assert scored["evaluation_reward_mean"] == pytest.approx((count - 1) / 2)
    assert scored["evaluation_reward_error"] == pytest.approx(torch.arange(count).double().std(correction=0).item() / count**0.5)


def test_held_out_prompts_are_never_trained_on_and_stay_the_same() -> None:
    pool = PromptPool("default", 400, held_out_ratio=0.25)
    for n in range(300):
        pool.add(
            Episode.model_validate({"episode_id": f"e{n}", "messages": [{"role": "user", "content": f"Q{n}"}], "started_at": AT, "ended_at": AT})
        )
    held = pool.held_out(400)
    assert 45 < len(held) < 105  # 75 on average, standard deviation 7.5
    trained = pool.choose(400, seed=0, step=0)
    assert len(held) + len(trained) == 300
    assert not {p[-1].text for p in held} & {p[-1].text for p in trained}
    assert all(pool.holds_out(prompt) for prompt in held)
    assert pool.held_out(5) == held[:5]
    assert PromptPool("default", 9).held_out(5) == []


class Asked:
    """Stands for actor and feed: counts evaluations."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.prompts, self.reward_folder, self.reward_model = self, Path("r"), self
        self.version = 3

    def held_out(self, count: int) -> list[Prompt]:
        return [(Message(role="user", content="Q"),)][:count]

    def call(self, name: str, prompts: list[Prompt], folder: Path) -> dict[str, float]:
        self.calls.append((name, len(prompts)))
        return {"evaluation_reward_mean": 0.5}


def test_an_evaluation_comes_every_n_steps_and_once_for_a_step_that_is_tried_again() -> None:
    world, every = Asked(), HeldOutEvaluation(LearnerSettings(evaluate_every=2))
    before: Callable[[int], dict[str, float]] = lambda steps: every.before_step(world, world, steps)  # type: ignore[arg-type]  # noqa: E731
    assert before(0) == before(0) == {"evaluated_step": 0.0, "evaluation_reward_mean": 0.5}
    assert before(1) == {}
    assert before(2)["evaluated_step"] == 2.0
    assert world.calls == [("evaluate", 1)] * 2
    assert HeldOutEvaluation(LearnerSettings()).before_step(world, world, 0) == {}  # type: ignore[arg-type]


def version(number: int, step: int) -> AdapterVersion:
    artifact = Artifact(path="a", sha256="0" * 64, size_bytes=1)
    return AdapterVersion(policy="default", version=number, artifact=artifact, base_fingerprint="0" * 64, rank=1, targets=(), reward_model_version=1,
                          step=step, created_at=AT)  # fmt: skip


def label(adapter: str | None, **fields: object) -> Label:
    votes = [{"feedback_id": "f", "user_id": "u", "kind": "thumb", "value": 1.0, "at": AT}]
    times = dict.fromkeys(("episode_at", "first_feedback_at", "newest_feedback_at"), AT)
    return Label.model_validate({"episode_id": "e", "policy": "default", "outcome": "completed", "messages": [], "answer": "a", "adapter": adapter,
                                 "votes": votes} | times | fields)  # fmt: skip


def test_the_learner_waits_where_nobody_has_judged_its_recent_versions(tmp_path: Path) -> None:
    fresh = FreshLabels(most_steps=3, recent_steps=2)
    assert [fresh.lacking(steps) for steps in range(5)] == [False, False, False, True, True]
    fresh.note_label(label(None), steps=3)  # the base is three steps old: too old
    assert fresh.lacking(3)
    for step in range(1, 4):
        fresh.note_version(version(step, step))
    fresh.note_label(label("default@7"), steps=3)  # not known
    fresh.note_label(label("default@3", votes=[]), steps=3)  # says nothing
    assert fresh.lacking(3)
    fresh.note_label(label("default@1"), steps=3)  # two steps behind: recent
    assert [fresh.lacking(steps) for steps in (3, 5, 6)] == [False, False, True]
    fresh.save(tmp_path)
    again = FreshLabels(most_steps=3, recent_steps=2)
    again.load(tmp_path)
    assert (again.lacking(5), again.lacking(6)) == (False, True)


def test_without_a_bound_nothing_is_waited_for(tmp_path: Path) -> None:
    free = FreshLabels(most_steps=0, recent_steps=2)
    free.load(tmp_path)
    assert not free.bounds
    assert not free.lacking(10_000)


def test_the_sentence_says_what_is_waited_for() -> None:
    waiting = LearnerProgress(step=9, phase="waiting", for_labels=True, at=AT)
    assert waiting.sentence(AT) == "waits before step 9 for a label on an answer of its newest versions"
