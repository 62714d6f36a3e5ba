"""Published reward models and embedding models as backbones: what they say is what the features hold, batched or alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from reward.features.backbone_tuning import TuningRecipe, tune
from reward.features.featurizer import Pair
from reward.features.part_features import STORE, features_of_part
from reward.features.sequence_backbone import FORMS, SequenceFeaturizer, pooled
from reward.settings import RewardSettings
from reward.updater.refitter import Refitter
from streams.core.errors import ConfigError
from streams.core.events import Message
from tests.support.sequence_models import bert_classifier, bert_encoder, llama_reward_model
from tests.unit.reward.test_refitter import label

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sequence-models")
    made = {"bert": bert_classifier, "encoder": bert_encoder, "llama": llama_reward_model}
    return {name: make(root / name) for name, make in made.items()}


def featurizer(folder: Path, **changes: Any) -> SequenceFeaturizer:
    return SequenceFeaturizer(
        folder, RewardSettings.model_validate({"backbone": folder, "backbone_kind": "reward_model", "dtype": "float32"} | changes)
    )


def pair(question: str, answer: str) -> Pair:
    return (Message(role="user", content=question),), answer


PAIRS = [pair("tea?", "a drink"), pair("why do cats purr?", "they are content"), pair("hi", "h"), pair("", "an answer to nothing")]


@torch.no_grad()
def test_a_classifiers_one_output_is_the_feature(folders: dict[str, Path]) -> None:
    made = featurizer(folders["bert"])
    words, model = AutoTokenizer.from_pretrained(folders["bert"]), AutoModelForSequenceClassification.from_pretrained(folders["bert"])
    for one in PAIRS:
        said = model(**words(f"user: {one[0][0].text}", one[1], return_tensors="pt")).logits
        torch.testing.assert_close(made.features([one])[:, :1], said, rtol=1e-4, atol=1e-5)
    assert [size for size, _ in made.blocks] == [1, 1, 2]


@torch.no_grad()
def test_a_decoder_with_a_chat_template_gets_the_conversation_as_the_template_renders_it(folders: dict[str, Path]) -> None:
    made = featurizer(folders["llama"])
    words, model = AutoTokenizer.from_pretrained(folders["llama"]), AutoModelForSequenceClassification.from_pretrained(folders["llama"])
    for messages, answer in PAIRS:
        text = f"<turn>user {messages[0].text}<turn>assistant {answer}"
        ids = words(text, return_tensors="pt").input_ids
        assert int((ids == words.convert_tokens_to_ids("<turn>")).sum()) == 2
        torch.testing.assert_close(made.features([(messages, answer)])[:, :1], model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "kind"), [("bert", "reward_model"), ("llama", "reward_model"), ("encoder", "embedding")])
def test_together_pairs_are_told_as_alone_and_in_the_order_in_which_they_came(folders: dict[str, Path], name: str, kind: str) -> None:
    alone_ND = torch.cat([featurizer(folders[name], backbone_kind=kind).features([one]) for one in PAIRS])
    for batch in (1, 3, 8):
        together_ND = featurizer(folders[name], backbone_kind=kind, backbone_batch=batch).features(PAIRS)
        torch.testing.assert_close(together_ND, alone_ND, rtol=1e-4, atol=1e-5)
    assert float((alone_ND[0] - alone_ND[1]).abs().max()) > 1e-3
    assert featurizer(folders[name], backbone_kind=kind).features([]).shape == (0, alone_ND.shape[1])


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_an_encoders_states_are_pooled_as_the_setting_says(folders: dict[str, Path], pooling: str) -> None:
    words, model = AutoTokenizer.from_pretrained(folders["encoder"]), AutoModel.from_pretrained(folders["encoder"])
    states_TH = model(**words("user: tea?", "a drink", return_tensors="pt")).last_hidden_state[0]
    expected_H = {"mean": states_TH.mean(0), "first": states_TH[0], "last": states_TH[-1]}[pooling]
    found_ND = featurizer(folders["encoder"], backbone_kind="embedding", pooling=pooling).features(PAIRS[:1])
    torch.testing.assert_close(found_ND[0, :-FORMS], expected_H, rtol=1e-4, atol=1e-5)


def test_padding_counts_in_no_pooling() -> None:
    states_BTH, mask_BT = torch.arange(12.0).reshape(2, 3, 2), torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert pooled(states_BTH, mask_BT, "mean").tolist() == [[2.0, 3.0], [7.0, 8.0]]
    assert pooled(states_BTH, mask_BT, "first").tolist() == [[0.0, 1.0], [6.0, 7.0]]
    assert pooled(states_BTH, mask_BT, "last").tolist() == [[4.0, 5.0], [8.0, 9.0]]


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_the_end_of_a_long_question_and_the_beginning_of_a_long_answer_are_read(folders: dict[str, Path], name: str) -> None:
    """BERT has 64 positions; the settings ask for less of either."""
    made = featurizer(folders[name], max_prompt_tokens=24, max_answer_tokens=12)
    end = "this is the end of a long question"

    def said(question: str, answer: str) -> float:
        return float(made.features([pair(question, answer)])[0, 0])

    assert said("x" * 500 + end, "y" * 500) == pytest.approx(said("z" * 900 + end, "y" * 12 + "z" * 70), abs=1e-5)
    assert said(end, "y" * 12) != pytest.approx(said(end[:-2] + "!!", "y" * 12), abs=1e-4)
    assert said("q", "y" * 12) != pytest.approx(said("q", "x" + "y" * 11), abs=1e-4)
    whole = featurizer(folders[name])
    assert bool(torch.isfinite(whole.features([pair("q" * 2000, "a" * 2000)])).all())


def test_what_a_person_writes_is_text_and_half_a_character_is_no_error(folders: dict[str, Path]) -> None:
    for name in ("bert", "llama"):
        made = featurizer(folders[name])
        assert bool(torch.isfinite(made.features([pair("[SEP] <turn>", "\ud83d half"), pair("\ud83d", "")])).all())
        assert len(made._ids("[SEP]<turn>")) > 2


def test_a_folder_that_holds_something_else_is_refused_by_name(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"2 outputs, but reward.backbone_kind = reward_model needs exactly one"):
        featurizer(bert_classifier(tmp_path / "two", outputs=2))
    with pytest.raises(ConfigError, match=r"has no weights for .*: it is no reward model"):
        featurizer(folders["encoder"])
    with pytest.raises(ConfigError, match="holds no model"):
        featurizer(tmp_path)
    with pytest.raises(ValidationError, match=r"backbone_kind = embedding needs reward.backbone"):
        RewardSettings(backbone_kind="embedding")
    with pytest.raises(ConfigError, match="only a language_model can be tuned"):
        tune(folders["bert"], [], RewardSettings(backbone=folders["bert"], backbone_kind="reward_model"), TuningRecipe(), tmp_path / "x", print)


def test_the_model_is_moved_to_its_device_once(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    moves, really = [], torch.nn.Module.to

    def to(module: torch.nn.Module, *where: Any, **how: Any) -> Any:
        moves.append(where)
        return really(module, *where, **how)

    monkeypatch.setattr(torch.nn.Module, "to", to)
    made = featurizer(folders["encoder"], backbone_kind="embedding")
    for one in PAIRS:
        made.features([one])
    assert moves == [("cpu",)]


def test_the_fingerprint_names_the_kind_and_how_states_are_pooled(folders: dict[str, Path]) -> None:
    kinds = [featurizer(folders["encoder"], backbone_kind="embedding", pooling=pooling).fingerprint for pooling in ("mean", "last")]
    assert len({*kinds, featurizer(folders["bert"]).fingerprint}) == 3
    assert featurizer(folders["encoder"], backbone_kind="embedding", pooling="mean", backbone_batch=2).fingerprint == kinds[0]


def test_heads_on_a_reward_model_learn_what_it_knows(folders: dict[str, Path], tmp_path: Path) -> None:
    """People like what the reward model likes: forty thumbs are enough, and the features are in the updater's file."""
    settings = RewardSettings(backbone=folders["llama"], backbone_kind="reward_model", dtype="float32", heads=2, folds=2, person_share=1.0)
    features = features_of_part(tmp_path, settings, tmp_path)
    answers = [f"answer {chr(97 + n % 26)} {chr(97 + n // 3)}{n * n % 7}" for n in range(80)]
    likes_N = features.features([((Message(role="user", content="tea?"),), answer) for answer in answers])[:, 0]
    middle = float(likes_N.median())
    labels = [label(n, float(likes_N[n] > middle), answers[n], at=n) for n in range(80)]
    refitter = Refitter(settings, features)
    refitter.absorb(refitter.prepare(labels[:40]))
    said_N = refitter.fitted().score(features.features([(one.messages, one.answer) for one in labels[40:]])).mean_N
    assert float(((said_N > 0.5) == (likes_N[40:] > middle)).float().mean()) > 0.8
    assert (tmp_path / STORE).exists()
