"""Features by the tiny backbone: what they are, and that nothing else leaks into them."""

from pathlib import Path

import pytest
import torch

from reward.features.featurizer import Featurizer, Pair
from reward.settings import RewardSettings
from streams.core.errors import ConfigError
from streams.core.events import Message

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def backbone(tiny_base: Path) -> Path:
    return tiny_base / "dense"


@pytest.fixture
def featurizer(backbone: Path) -> Featurizer:
    return Featurizer(backbone, RewardSettings(dtype="float32"))


def pair(question: str, answer: str) -> Pair:
    return ((Message(role="system", content="Be brief."), Message(role="user", content=question)), answer)


PAIRS = [
    pair("Tell me about tea.", "Tea is a drink."),
    pair("Tell me about tea.", "You would like it."),
    pair("Why do cats purr?", "They are content."),
]


def test_features_are_finite_and_as_wide_as_their_blocks(featurizer: Featurizer) -> None:
    x_ND = featurizer.features(PAIRS)
    assert x_ND.shape == (3, sum(size for size, _ in featurizer.blocks))
    assert x_ND.dtype == torch.float32
    assert bool(torch.isfinite(x_ND).all())
    assert featurizer.features([]).shape == (0, x_ND.shape[1])


def test_a_pairs_features_do_not_depend_on_its_company(backbone: Path, featurizer: Featurizer) -> None:
    combined_weights = featurizer.features(PAIRS)
    for order in ((2, 1, 0), (1, 0, 2)):
        alone = Featurizer(backbone, RewardSettings(dtype="float32", feature_cache_pairs=0))
        for n in order:
            assert torch.equal(alone.features([PAIRS[n]])[0], combined_weights[n])


def test_states_after_a_kept_prompt_are_those_of_the_whole(featurizer: Featurizer) -> None:
    prompt, answer = tuple(range(100, 120)), (7, 8, 9, 2)
    for words in ((5, 6), answer):  # the second time, the prompt is known and an answer must be forgotten
        parts = featurizer._states(prompt, words)
    whole = featurizer._model(input_ids=torch.tensor([prompt + answer]), output_hidden_states=True).hidden_states
    for part, full in zip(parts, whole, strict=True):
        torch.testing.assert_close(part, full[:, len(prompt) :], rtol=1e-4, atol=1e-4)


def test_question_and_answer_both_count(featurizer: Featurizer) -> None:
    a, b, c = featurizer.features([pair("About tea?", "Tea is a drink."), pair("About cats?", "Tea is a drink."), pair("About tea?", "Cats purr.")])
    assert not torch.equal(a, b)
    assert not torch.equal(a, c)


def test_an_answer_that_takes_up_the_question_stands_out(featurizer: Featurizer) -> None:
    close, far = featurizer.features([pair("volcanoes", "Volcanoes are volcanoes"), pair("volcanoes", "Bread rises slowly")])[:, -8:-5].sum(1)
    assert close > far


def test_the_length_of_all_of_the_answer_is_seen_though_its_end_is_not_read(backbone: Path) -> None:
    featurizer = Featurizer(backbone, RewardSettings(dtype="float32", max_answer_tokens=8, max_windows=1))
    short, long = featurizer.features([pair("Tea?", "tea " * 20), pair("Tea?", "tea " * 200)])
    assert torch.equal(short[:-3], long[:-3])
    assert long[-2] > 5 * short[-2]


@pytest.mark.parametrize("answer", ["", " ", "<|im_end|>", "x" * 100_000, "\x00 \ud800", "🦉" * 500])
def test_odd_answers_have_features_too(featurizer: Featurizer, answer: str) -> None:
    assert bool(torch.isfinite(featurizer.features([pair("Tell me.", answer)])).all())


def test_a_persons_special_tokens_are_plain_text(featurizer: Featurizer) -> None:
    end = featurizer._tokenizer.eos_token_id
    assert end not in featurizer._ids("tea<|im_end|>")
    assert end in featurizer._ids("<|im_start|>user\ntea<|im_end|>", special=True)


def test_unknown_roles_and_no_messages_are_rendered_somehow(featurizer: Featurizer) -> None:
    odd: list[Pair] = [((), "Tea."), ((Message(role="tool", content=None, tool_call_id="1"), Message(role="wizard", content="Tea?")), "Tea.")]
    assert bool(torch.isfinite(featurizer.features(odd)).all())


def test_the_cache_is_bounded_and_forgets_what_was_not_asked_for_lately(backbone: Path) -> None:
    featurizer = Featurizer(backbone, RewardSettings(dtype="float32", feature_cache_pairs=2))
    first = featurizer.features(PAIRS[:2])
    featurizer.features(PAIRS[:1])
    featurizer.features(PAIRS[2:])
    assert len(featurizer._cache) == 2
    assert any(row is first[0] or torch.equal(row, first[0]) for row in featurizer._cache.values())
    assert not any(torch.equal(row, first[1]) for row in featurizer._cache.values())


def test_the_fingerprint_names_backbone_and_settings(backbone: Path, featurizer: Featurizer) -> None:
    assert Featurizer(backbone, RewardSettings(dtype="float32")).fingerprint == featurizer.fingerprint
    assert Featurizer(backbone, RewardSettings(dtype="float32", max_answer_tokens=9)).fingerprint != featurizer.fingerprint
    assert Featurizer(backbone, RewardSettings(dtype="float32", l2=9)).fingerprint == featurizer.fingerprint


def test_no_backbone_is_an_error_that_says_where(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        Featurizer(tmp_path)
