"""Rebuilds adapters from their recipes: the same steps from a fresh adapter on, and the same bytes.

It works with the transformers engine on the same kind of CPU, with the same number of threads and the same torch. Results of a GPU or of vLLM depend
on what else is in a batch, so they cannot be rebuilt bit for bit.
"""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from learner.models.lora_policy import ADAPTER_FILES, Policy
from learner.ring.adapter_recipe import AdapterRecipe
from learner.rollouts.engine_choice import make_engine
from learner.rollouts.rollout_engines import TransformersEngine
from learner.runs.learner_process import RewardScorer
from learner.runs.trainer import Trainer
from reward.features.part_features import features_of_part
from reward.fit.reward_model import RewardModel
from reward.settings import RewardSettings
from streams.artifacts.artifact_store import ArtifactStore, fingerprint, sha256_of
from streams.core.errors import BadArtifact, ConfigError
from streams.core.events import AdapterVersion, Artifact


@dataclass(frozen=True)
class Replayed:
    """A published adapter compared with its rebuild."""

    name: str
    step: int
    published: str
    """SHA-256 of its safetensors file."""
    replayed: str

    @property
    def equal(self) -> bool:
        """True when both are equal bit for bit."""
        return self.published == self.replayed


def ancestry(adapters: Sequence[AdapterVersion], version: int) -> list[AdapterVersion]:
    """The adapter and all before it, oldest first. Raises ConfigError when one is not known."""
    by_version, found = {adapter.version: adapter for adapter in adapters}, []
    at: int | None = version
    while at is not None:
        if at not in by_version:
            raise ConfigError(f"adapter version {at} is not known here: the lake, or the log, holds {sorted(by_version) or 'none'}")
        found.append(by_version[at])
        at = by_version[at].parent
    return found[::-1]


def replay(chain: Sequence[AdapterVersion], store: ArtifactStore, base: Path, reward: RewardSettings) -> Iterator[Replayed]:
    """Rebuild each adapter of an ancestry. Raises ConfigError when machine or settings are not those that it was made with."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recipes = [_recipe(adapter, store, folder / adapter.name) for adapter in chain]
        _check(chain, recipes, base)
        torch.set_num_threads(recipes[0].threads)
        policy = Policy(base, recipes[0].settings)
        trainer = Trainer(policy, make_engine(policy, recipes[0].settings), recipes[0].settings)
        featurizer = features_of_part(base, reward)
        if featurizer.fingerprint != recipes[0].features:
            raise ConfigError("the reward model's features differ: use the [reward] settings of the run, such as its config.toml")
        models: dict[str, RewardModel] = {}
        following = iter([taken.prompts if taken.ahead else () for recipe in recipes for taken in recipe.steps][1:])
        for adapter, recipe in zip(chain, recipes, strict=True):
            for taken in recipe.steps:
                if taken.reward_model.sha256 not in models:
                    models = {taken.reward_model.sha256: _reward_model(taken.reward_model, store, folder)}
                trainer.step(taken.prompts, RewardScorer(featurizer, models[taken.reward_model.sha256]), taken.judged, next(following, ()))
            again = folder / f"again-{adapter.name}"
            policy.save_adapter(again)
            published = sha256_of(folder / adapter.name / ADAPTER_FILES[0])
            yield Replayed(adapter.name, trainer.step_number, published, sha256_of(again / ADAPTER_FILES[0]))


def _recipe(adapter: AdapterVersion, store: ArtifactStore, into: Path) -> AdapterRecipe:
    recipe = AdapterRecipe.read(store.fetch(adapter.artifact, into))
    if not recipe.whole or recipe.steps[-1].step != adapter.step:
        raise ConfigError(f"{adapter.name} cannot be rebuilt: a kill lost the steps between it and its parent (learner.checkpoint_every above 1)")
    if recipe.engine != TransformersEngine.name or recipe.device != "cpu":
        raise ConfigError(f"{adapter.name} was sampled by {recipe.engine} on {recipe.device}, which gives other bits at each run")
    if recipe.settings.workers > 1:
        raise ConfigError(f"{adapter.name} was learned by several processes (learner.workers), whose sums depend on how many were there")
    return recipe


def _check(chain: Sequence[AdapterVersion], recipes: Sequence[AdapterRecipe], base: Path) -> None:
    if (here := fingerprint(base)) != chain[0].base_fingerprint:
        raise ConfigError(f"the base here has fingerprint {here[:12]}, these adapters were trained on {chain[0].base_fingerprint[:12]}")
    if recipes[0].torch != torch.__version__:
        raise ConfigError(f"these adapters were made with torch {recipes[0].torch}, here is {torch.__version__}")
    if recipes[0].after_step != 0 or any(a.steps[-1].step != b.after_step for a, b in itertools.pairwise(recipes)):
        raise ConfigError("the recipes do not follow on each other: the learner's state was changed by hand in between")
    if any(recipe.deciding != recipes[0].deciding for recipe in recipes):
        raise ConfigError("the learner's settings changed within this ancestry; only an ancestry of one setting can be made again")


def _reward_model(artifact: Artifact, store: ArtifactStore, folder: Path) -> RewardModel:
    try:
        return RewardModel.load(store.fetch(artifact, folder / "reward-model"))
    except BadArtifact as error:
        raise ConfigError(f"a reward model that the steps used is gone: {error}") from None
