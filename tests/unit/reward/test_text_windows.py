"""Long texts are read to their end, in windows; short ones exactly as before."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reward.features.featurizer import Featurizer
from reward.features.text_windows import answer_windows, prompt_windows
from reward.settings import RewardSettings
from tests.unit.reward.test_featurizer import PAIRS, pair

torch.set_num_threads(1)
NUMBERS = list(range(10))


def test_a_prompt_is_cut_from_its_end_and_an_answer_from_its_beginning() -> None:
    assert prompt_windows(NUMBERS, 4, 9) == [(6, 7, 8, 9), (2, 3, 4, 5), (0, 1)]
    assert prompt_windows(NUMBERS, 4, 2) == [(6, 7, 8, 9), (0, 1)]  # the question, and the rules at the beginning
    assert prompt_windows(NUMBERS, 4, 1) == [(6, 7, 8, 9)]
    assert answer_windows(NUMBERS, 4, 9) == [(0, (0, 1, 2, 3)), (4, (4, 5, 6, 7)), (8, (8, 9))]
    assert answer_windows(NUMBERS, 4, 2) == [(0, (0, 1, 2, 3)), (8, (8, 9))]
    assert answer_windows([], 4, 2) == [(0, ())]


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 9))
def test_windows_hold_each_token_at_most_once_and_all_where_there_is_room(length: int, size: int, most: int) -> None:
    ids = list(range(length))
    for found in (prompt_windows(ids, size, most), [window for _, window in answer_windows(ids, size, most)]):
        seen = [token for window in found for token in window]
        assert len(found) <= most
        assert len(set(seen)) == len(seen)
        assert all(len(window) <= size for window in found)
        if length <= size * most:
            assert sorted(seen) == ids


@pytest.fixture(scope="module")
def backbone(tiny_base: Path) -> Path:
    return tiny_base / "dense"


def read(backbone: Path, windows: int = 4) -> Featurizer:
    return Featurizer(backbone, RewardSettings(dtype="float32", max_prompt_tokens=16, max_answer_tokens=12, max_windows=windows))


def test_a_text_of_one_window_has_the_very_bits_that_it_has_without_windows(backbone: Path) -> None:
    few, many = (Featurizer(backbone, RewardSettings(dtype="float32", max_windows=n)) for n in (1, 9))
    assert torch.equal(few.features(PAIRS), many.features(PAIRS))
    assert few.fingerprint != many.fingerprint


@pytest.mark.parametrize("place", [0, 5, 13, 25, 35])
def test_a_word_beyond_the_first_window_of_an_answer_counts(backbone: Path, place: int) -> None:
    words = ["tea"] * 36
    changed = [*words[:place], "cat", *words[place + 1 :]]
    for windows, seen in ((4, True), (1, place < 10)):
        one, other = read(backbone, windows).features([pair("Tea?", " ".join(words)), pair("Tea?", " ".join(changed))])
        assert torch.equal(one[:-3], other[:-3]) is not seen


def test_the_beginning_of_a_long_prompt_counts(backbone: Path) -> None:
    said = "leaf " * 40
    for windows, seen in ((9, True), (1, False)):
        one, other = read(backbone, windows).features([pair(f"{start} {said}", "Tea is a drink.") for start in ("Praise", "Never")])
        hidden = (len(one) - 8) // 3
        assert torch.equal(one[hidden : 3 * hidden], other[hidden : 3 * hidden]) is not seen


def test_pooled_states_are_the_weighted_means_of_the_windows_each_read_alone(backbone: Path) -> None:
    features = read(backbone)
    end, ids = features._tokenizer.eos_token_id, list(range(100, 140))
    prompt = [tuple(range(200, 216)), tuple(range(300, 316)), tuple(range(400, 403))]
    windows = answer_windows(ids, 12, 4)
    with torch.inference_mode():
        mean_H, last_H = features._pooled(prompt, windows, ids)

        def alone(before: tuple[int, ...], own: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
            states = features._model(input_ids=torch.tensor([[*before, *own, end]]), output_hidden_states=True).hidden_states
            return features.two_states(states, len(before))

        near, middle, far = (alone(before, windows[0][1]) for before in prompt)
        text = (*prompt[0], *ids)
        rest = [alone(text[16 + start - 16 : 16 + start], own) for start, own in windows[1:]]
    first = [(near[k] + (middle[k] + far[k]) / 2) / 2 for k in (0, 1)]
    mean = (12 * first[0] + sum(len(own) * found[0] for (_, own), found in zip(windows[1:], rest, strict=True))) / 40
    torch.testing.assert_close(mean_H, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last_H, torch.stack([first[1], *(found[1] for found in rest)]).mean(0), rtol=1e-4, atol=1e-5)


def test_long_texts_do_not_depend_on_their_company_either(backbone: Path) -> None:
    pairs = [pair("leaf " * 30, "tea " * 40), pair("leaf " * 30, "cat " * 9), pair("Tea?", "Tea."), pair("leaf " * 60, "tea " * 20)]
    together = read(backbone).features(pairs)
    for n in (3, 1, 0, 2):
        assert torch.equal(read(backbone).features([pairs[n]])[0], together[n])


def test_a_thousand_windows_are_asked_for_no_more_than_the_setting_says(backbone: Path) -> None:
    features, passes = read(backbone, 3), []
    features._model.register_forward_hook(lambda _, __, output: passes.append(tuple(output.last_hidden_state.shape[:2])))
    features.features([pair("leaf " * 5000, "tea " * 5000)])
    assert sum(rows for rows, _ in passes) == 3 + 3 + 2  # each window of the prompt, the answer's first after each, its other two
    assert max(tokens for _, tokens in passes) <= 16 + 12 + 1
