"""One developer who tries the ring alone gets a reward model; a few people get what the documentation says they get."""

from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from reward.evaluation.version_replay import published_model
from reward.settings import RewardSettings
from streams.core.events import Label
from tests.support.label_world import LabelWorld
from tests.unit.reward.test_refitter import CountedLetters, label

torch.set_num_threads(1)
DEFAULTS = RewardSettings()


def thumb(person: str, number: int) -> Label:
    """People like "you" and dislike "tea"; one answer in four is disliked."""
    liked = number % 4 != 0
    one = label(number, float(liked), ("you " if liked else "tea ") * (1 + number % 3) + str(number), at=number, votes=[("thumb", "")])
    return one.model_copy(update={"votes": tuple(vote.model_copy(update={"user_id": person}) for vote in one.votes)})


def told(folder: Path, labels: list[Label], settings: RewardSettings = DEFAULTS) -> tuple[LabelWorld, list[str]]:
    """The world after an updater has read these labels, and what its log named."""
    folder.mkdir(exist_ok=True)
    world = LabelWorld(folder, settings, CountedLetters())
    world.add(labels)
    with capture_logs() as said, world.updater() as steps:
        world.read(steps, batch=100)
    return world, [line["event"] for line in said]


def test_sixteen_thumbs_of_one_person_make_a_reward_model_that_knows_their_taste(tmp_path: Path) -> None:
    """By the settings as they are. No rule against crowds gets in the way of somebody who is alone."""
    world, said = told(tmp_path, [thumb("dev", n) for n in range(DEFAULTS.min_labels)])
    (version,) = world.versions()
    assert (version.labels, version.largest_person_share) == (16, 1.0)
    scores = published_model(version, world.context.artifacts).score(CountedLetters().features([((), "you you"), ((), "tea tea")]))
    assert float(scores.lower_N[0] - scores.lower_N[1]) > 0.2
    assert "person_cap_cuts_most" not in said


def test_fifteen_thumbs_are_not_enough_and_sixteen_of_one_kind_neither(tmp_path: Path) -> None:
    assert told(tmp_path / "few", [thumb("dev", n) for n in range(15)])[0].versions() == []
    assert told(tmp_path / "kind", [thumb("dev", n) for n in range(100) if n % 4])[0].versions() == []


@pytest.mark.parametrize(("share", "says"), [(0.2, True), (1.0, False)])
def test_beside_a_colleagues_single_thumb_the_log_says_what_is_cut_and_which_setting_does_it(tmp_path: Path, share: float, says: bool) -> None:
    settings = DEFAULTS.model_copy(update={"person_share": share})
    world, said = told(tmp_path, [*(thumb("dev", n) for n in range(40)), thumb("colleague", 41)], settings)
    assert world.versions()[-1].largest_person_share == pytest.approx(0.5 if share < 1 else 40 / 41, abs=0.01)
    assert ("person_cap_cuts_most" in said) is says
