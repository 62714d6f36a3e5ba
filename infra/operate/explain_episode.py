"""Explains an answer's score from the lake and the artifact store, for ``tidemill reward explain`` and the console."""

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from infra.local.part_process import artifact_store, base_folder, lake_uri
from infra.machine.machine_probe import as_the_run_computes
from infra.settings.config import Settings
from streams.core.errors import ConfigError, Refused
from streams.lake.parquet_lake import Lake

if TYPE_CHECKING:  # torch and transformers take seconds to import; they are imported at the first question
    from reward.evaluation.score_explanation import Explanation
    from reward.evaluation.version_replay import Replay
    from reward.features.feature_store import PartFeatures


@dataclass(frozen=True)
class Explained:
    """An episode's score with its reasons."""

    episode_id: str
    adapter: str | None
    version: int
    """Version of the reward model."""
    why: "Explanation"

    def as_text(self) -> list[str]:
        """Lines for a terminal."""
        why = self.why
        return [
            f"episode {self.episode_id}, answered by {self.adapter or 'the base'}, scored by version {self.version}",
            f"score {why.mean:.3f} ± {why.std:.3f} (the ensemble's disagreement); reward {why.lower:.3f}",
            "nearest labelled answers",
            *(f"  {n.episode_id}  similarity {n.similarity:+.2f}  verdict {n.verdict:.2f}" for n in why.neighbours),
            f"labels that moved it, in logits (an average answer has {why.standing:+.2f})",
            *(f"  {m.episode_id}  {m.logits:+.3f}" for m in why.moved),
            f"  all others  {why.others:+.3f}",
        ]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"episode_id": self.episode_id, "version": self.version, **asdict(self.why)}


class Explainer:
    """Explains episodes, one at a time. Backbone and features of labels are kept between calls. Thread-safe."""

    def __init__(self, settings: Settings, say: Callable[[str], None] = lambda line: None) -> None:
        """``say`` hears what is being done, several times a second at most, and an empty line at the end."""
        self._say = say
        self._settings, self._lake = as_the_run_computes(settings), Lake(lake_uri(settings))
        self._artifacts = artifact_store(settings)
        self._busy = threading.Lock()
        self._featurizer: PartFeatures | None = None
        self._reached: tuple[int, Replay] | None = None

    def explain(self, episode_id: str, number: int | None = None) -> Explained:
        """Explain by version ``number``, or the newest. Raises ConfigError when the lake lacks something, Refused while another call runs."""
        if not self._busy.acquire(blocking=False):
            raise Refused("another score is being explained: try again when it is done")
        try:
            return self._explained(episode_id, number)
        finally:
            self._say("")
            self._busy.release()

    def _explained(self, episode_id: str, number: int | None) -> Explained:
        self._say("loading what computes features")
        from reward.evaluation.score_explanation import explain
        from reward.evaluation.version_replay import episode_of, published_model, versions_of

        self._say(f"looking for {episode_id} in the lake")
        episode = episode_of(self._lake, episode_id)
        versions = [v for v in versions_of(self._lake, self._settings.policy.name) if number in (None, v.version)]
        if not versions:
            raise ConfigError("the lake holds no reward-model version" + (f" {number}" if number else ""))
        version = versions[-1]
        if self._reached is None or self._reached[0] != version.version:
            self._say("loading the base")
            replay = self._replay()
            self._say(f"reading the labels that version {version.version} learned from")
            replay.reach(version, lambda done, of: self._say(f"computing features: {done:,} of {of:,} labels"))
            self._reached = (version.version, replay)
        refitter = self._reached[1].refitter
        self._say("computing features of the answer, and what each label changed")
        features_D = refitter.features.features([(episode.prompt, episode.whole_answer)])[0]
        said = explain(published_model(version, self._artifacts), refitter.weighted(), refitter.recipe(), features_D)
        return Explained(episode.episode_id, episode.adapter, version.version, said)

    def _replay(self) -> "Replay":
        import torch

        from reward.evaluation.version_replay import Replay
        from reward.features.part_features import features_of_part

        if self._featurizer is None:
            torch.set_num_threads(self._settings.reward.threads)  # as the updater does: the number of threads changes the last bits
            self._featurizer = features_of_part(base_folder(self._settings.policy), self._settings.reward)
        return Replay(self._lake, self._settings.policy.name, self._settings.reward, self._featurizer, partitions=self._settings.kafka.partitions)
