"""Any adapter again from its recipe, bit for bit; and where that cannot be, a reason."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from learner.ring.adapter_recipe import AdapterRecipe
from learner.ring.adapter_replay import ancestry, replay
from learner.ring.labelled_answers import LabelledAnswer
from learner.runs.learner_process import LearnerProcess
from learner.runs.trainer import Prompt
from learner.settings import LearnerSettings
from reward.features.featurizer import Featurizer
from reward.fit.reward_model import RewardModel
from reward.settings import RewardSettings
from streams.artifacts.artifact_store import ArtifactStore, fingerprint
from streams.core.errors import BadArtifact, ConfigError
from streams.core.events import AdapterVersion, Artifact, Message

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SETTINGS = LearnerSettings(dtype="float32", max_output_tokens=6, samples_per_prompt=3, learning_rate=0.01, threads=1, engine="transformers")
PROMPTS: list[Prompt] = [(Message(role="user", content=text),) for text in ("What is tea?", "Why do whales sing?", "Tell me of the moon.")]


@dataclass
class World:
    """A learner's process, a store, and what was published."""

    base: Path
    folder: Path
    settings: LearnerSettings = SETTINGS
    published: list[AdapterVersion] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = ArtifactStore(str(self.folder / "store"))
        self.rewards = [self._reward_model(seed) for seed in (1, 2)]
        self.restart()

    def restart(self) -> None:
        """A new process, which goes on from its checkpoint."""
        self.process = LearnerProcess(self.settings, RewardSettings(), self.base, self.folder / "state")

    def step(self, *prompts: int, reward: int = 0, labelled: tuple[LabelledAnswer, ...] = (), following: tuple[int, ...] = ()) -> None:
        folder = self.store.fetch(self.rewards[reward], self.folder / f"reward-{reward}")
        self.process.step([PROMPTS[n] for n in prompts], folder, self.rewards[reward], labelled, [PROMPTS[n] for n in following])

    def publish(self) -> AdapterVersion:
        newest = self.published[-1] if self.published else None
        version, out = len(self.published) + 1, self.folder / "outgoing"
        targets = self.process.export(out, newest.step if newest else 0)
        self.published.append(AdapterVersion(
            policy="default", version=version, artifact=self.store.put(out, f"adapters/default/{version}"), base_fingerprint=fingerprint(self.base),
            parent=newest.version if newest else None, rank=SETTINGS.rank, targets=targets, reward_model_version=1, step=self.process.steps(),
            created_at=NOW,
        ))  # fmt: skip
        return self.published[-1]

    def again(self, version: int) -> list[bool]:
        chain = ancestry(self.published, version)
        return [one.equal for one in replay(chain, self.store, self.base, RewardSettings())]

    def _reward_model(self, seed: int) -> Artifact:
        featurizer = Featurizer(self.base / "dense", RewardSettings())
        size, chance = sum(block for block, _ in featurizer.blocks), torch.Generator().manual_seed(seed)
        model = RewardModel(
            features=featurizer.fingerprint, temperature=1.0, offset=0.0, lower_bound_stds=0.5, centre_D=torch.zeros(size),
            spread_D=torch.ones(size), gain_D=torch.ones(size), heads_KD=torch.randn(4, size, generator=chance) * 0.1, head_bias_K=torch.zeros(4),
            folds_FD=torch.zeros(3, size), fold_bias_F=torch.zeros(3),
        )  # fmt: skip
        return self.store.put(model.save(self.folder / f"model-{seed}"), f"reward-models/default/{seed}")


@pytest.fixture
def world(tiny_base: Path, tmp_path: Path) -> World:
    return World(tiny_base, tmp_path)


def test_every_adapter_is_made_again_bit_for_bit_over_changing_reward_models_and_a_restart(world: World) -> None:
    world.step(0, 1)
    world.publish()
    world.step(1, 2)
    world.step(0, 2, reward=1)
    world.restart()  # two steps of this adapter lie before it, one after
    world.step(2, 1, 0, reward=1)
    world.publish()
    assert world.again(2) == [True, True]
    assert world.again(1) == [True]


def test_what_people_said_of_live_answers_is_in_the_recipe_and_makes_the_same_adapter_again(world: World) -> None:
    world.settings = SETTINGS.model_copy(update={"thumb_weight": 1.0, "hindsight_weight": 1.0})
    world.restart()
    liked = LabelledAnswer(episode_id="ep-1", prompt=PROMPTS[0], answer="warm leaves", verdict=1.0)
    told = LabelledAnswer(episode_id="ep-2", prompt=PROMPTS[1], answer="no", verdict=0.0, comments=("Say more.",))
    far_too_long = LabelledAnswer(episode_id="ep-3", prompt=PROMPTS[2], answer="no", comments=("word " * 600,))
    world.step(0, labelled=(liked, told, far_too_long))
    world.step(1, labelled=(told.model_copy(update={"correction": "They call."}),))
    world.publish()
    recipe = AdapterRecipe.read(world.folder / "outgoing")
    assert [[one.episode_id for one in taken.judged] for taken in recipe.steps] == [["ep-1", "ep-2"], ["ep-2"]]
    assert world.again(1) == [True]
    silent = recipe.model_copy(update={"steps": tuple(taken.model_copy(update={"judged": ()}) for taken in recipe.steps)})
    silent.write(world.folder / "outgoing")
    world.published[0] = world.published[0].model_copy(update={"artifact": world.store.put(world.folder / "outgoing", "adapters/default/silent")})
    assert world.again(1) == [False]


def test_rollouts_that_were_sampled_during_the_step_before_are_sampled_so_again(world: World) -> None:
    world.settings = SETTINGS.model_copy(update={"sample_ahead": True})
    world.restart()
    world.step(0, 1, following=(1, 2))
    world.publish()
    world.step(1, 2, following=(0, 1))  # from the policy before the first step
    world.publish()
    world.restart()  # what was sampled ahead is lost
    world.step(0, 1, following=(2, 0))
    world.step(2, 0)
    world.publish()
    recipes = [AdapterRecipe.read(world.store.fetch(adapter.artifact, world.folder / f"read-{adapter.version}")) for adapter in world.published]
    assert [taken.ahead for recipe in recipes for taken in recipe.steps] == [False, True, False, True]
    assert world.again(3) == [True, True, True]


def test_what_several_processes_learned_is_not_claimed_to_come_out_the_same_again(world: World) -> None:
    world.settings = SETTINGS.model_copy(update={"workers": 2})
    world.restart()
    world.step(0, 1)
    world.publish()
    with pytest.raises(ConfigError, match="learned by several processes"):
        world.again(1)


def test_an_adapter_that_is_not_what_its_recipe_makes_is_found_out(world: World) -> None:
    world.step(0, 1)
    folder = world.folder / "outgoing"
    world.process.export(folder, 0)
    recipe = AdapterRecipe.read(folder)
    recipe.model_copy(update={"steps": (recipe.steps[0].model_copy(update={"prompts": (PROMPTS[2], PROMPTS[1])}),)}).write(folder)
    artifact = world.store.put(folder, "adapters/default/other")
    world.publish()
    world.published[0] = world.published[0].model_copy(update={"artifact": artifact})
    assert world.again(1) == [False]


def test_steps_that_a_kill_took_leave_an_adapter_that_says_it_cannot_be_made_again(world: World) -> None:
    world.settings = SETTINGS.model_copy(update={"checkpoint_every": 10})
    world.restart()
    world.step(0, 1)
    world.publish()
    world.restart()  # the step was published, and never checkpointed
    world.step(1, 2)
    world.step(0, 1)
    world.publish()
    with pytest.raises(ConfigError, match="default@2 cannot be rebuilt: a kill lost the steps"):
        world.again(2)


def test_another_machine_or_other_settings_are_told_apart_from_a_lie(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.step(0, 1)
    world.publish()
    with pytest.raises(ConfigError, match="adapter version 7 is not known"):
        world.again(7)
    with pytest.raises(ConfigError, match=r"\[reward\] settings"):
        list(replay(world.published, world.store, world.base, RewardSettings(max_answer_tokens=77)))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9")
        with pytest.raises(ConfigError, match=r"torch 2.*, here is 9\.9"):
            world.again(1)
    world.settings = SETTINGS.model_copy(update={"learning_rate": 0.02})
    world.restart()
    world.step(1, 2)
    world.publish()
    with pytest.raises(ConfigError, match="settings changed within this ancestry"):
        world.again(2)
    with pytest.raises(BadArtifact, match=r"no readable recipe\.json"):
        AdapterRecipe.read(world.folder)


def test_what_a_strict_template_refuses_is_counted_and_the_step_goes_on_without_it(world: World) -> None:
    world.process._policy.tokenizer.chat_template = (
        "{%- for m in messages -%}{%- if m['role'] != 'user' -%}{{ raise_exception('users alone') }}{%- endif -%}{{ m['content'] }}{%- endfor -%}"
    )
    refused = (Message(role="system", content="Be brief."), *PROMPTS[1])
    labelled = (LabelledAnswer(episode_id="ep-1", prompt=refused, answer="no", comments=("Say more.",)),)
    folder = world.store.fetch(world.rewards[0], world.folder / "reward")
    assert world.process.step([refused], folder, world.rewards[0], labelled).left_out == {"template": 1}
    report = world.process.step([PROMPTS[0], refused], folder, world.rewards[0], labelled, [refused])
    assert (report.step, report.left_out) == (1, {"template": 2})
