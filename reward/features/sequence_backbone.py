"""Features of an answer from a model of whole sequences: a reward model with one output, or an embedding model whose token states are pooled.

Shapes: ``N`` pairs of (messages, answer), ``B`` pairs of one batch, ``T`` tokens (padded on the right), ``H`` hidden size, ``D`` features. Two parts:

- ``said``: the reward model's output (1), or the pooled states of question and answer (H);
- ``form`` (3): the answer's length, and how much it repeats itself. Length is a block of its own, as in featurizer.py.

Pairs of about the same length run together (``reward.backbone_batch``). Padding and batching change the last bits of a matrix product: where versions
must be rebuilt bit for bit, set it to 1.
"""

import hashlib
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from reward.features.featurizer import FORMS, RELATION_GAIN, RELATIONS, Pair, form_of, whole_characters
from reward.settings import RewardSettings
from streams.artifacts.artifact_store import fingerprint
from streams.core.chat_prompt import left_out, template_inputs
from streams.core.errors import ConfigError
from streams.core.events import Message

SEQUENCE_LAYOUT = 2
"""Increase it whenever these features change: models fitted on another layout must not score these."""
ROOM_FOR_SPECIAL = 8
"""Tokens that a tokenizer may put around and between question and answer."""
LARGEST_LENGTH = 1_000_000
"""Tokenizers without a limit name a larger one."""


class SequenceFeaturizer:
    """Features of (messages, answer) pairs by a frozen model of whole sequences. The model is moved to ``reward.device`` once."""

    def __init__(self, backbone: Path, settings: RewardSettings) -> None:
        """Raises ConfigError when the folder holds no model of this kind."""
        self._settings = settings
        self._scores = settings.backbone_kind == "reward_model"
        self._model = load_sequence_model(backbone, self._scores, settings.precision).to(settings.device).eval().requires_grad_(False)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(backbone), local_files_only=True)
        self._pad_id = self._model.config.pad_token_id
        positions = getattr(self._model.config, "max_position_embeddings", LARGEST_LENGTH)
        self._most_tokens = min(positions, int(min(self._tokenizer.model_max_length, LARGEST_LENGTH)))
        size = 1 if self._scores else int(self._model.config.hidden_size)
        self.blocks: tuple[tuple[int, float], ...] = ((size, 1.0), *((n, RELATION_GAIN * (n / RELATIONS) ** 0.5) for n in (1, FORMS - 1)))
        """Size and gain of each block, in order."""
        named = f"{fingerprint(backbone)} {SEQUENCE_LAYOUT} {settings.backbone_kind} {settings.pooling} {settings.precision}"
        self.fingerprint = hashlib.sha256(f"{named} {settings.max_prompt_tokens} {settings.max_answer_tokens}".encode()).hexdigest()

    def features(self, pairs: Sequence[Pair]) -> Tensor:
        """Features of each pair: float32 ``[N, D]``, finite."""
        encoded = [self._encoded(messages, answer) for messages, answer in pairs]
        rows_ND = torch.zeros(len(pairs), sum(size for size, _ in self.blocks))
        by_length = sorted(range(len(pairs)), key=lambda n: len(encoded[n]["input_ids"]))
        for begin in range(0, len(pairs), self._settings.backbone_batch):
            together = by_length[begin : begin + self._settings.backbone_batch]
            rows_ND[together, : self.blocks[0][0]] = self._said([encoded[n] for n in together])
        for n, (_, answer) in enumerate(pairs):
            rows_ND[n, -FORMS:] = torch.tensor(form_of(self._ids(whole_characters(answer))))
        return torch.nan_to_num(rows_ND, nan=0.0, posinf=0.0, neginf=0.0)

    def clear_cache(self) -> None:
        """It keeps nothing of what people said."""

    @torch.inference_mode()
    def _said(self, encoded: Sequence[dict[str, list[int]]]) -> Tensor:
        """The model's output ``[B, 1]``, or its pooled states ``[B, H]``; on the processor."""
        longest = max(len(one["input_ids"]) for one in encoded)
        pad_id = self._pad_id if self._pad_id is not None else _unused_id(encoded)
        self._model.config.pad_token_id = pad_id  # a decoder's head reads the last token that is not this one
        fill = {"input_ids": pad_id}
        inputs = {
            name: torch.tensor([one[name] + [fill.get(name, 0)] * (longest - len(one[name])) for one in encoded], device=self._settings.device)
            for name in encoded[0]
        }
        found = self._model(**inputs)
        if self._scores:
            return torch.as_tensor(found.logits).float().cpu()
        return pooled(found.last_hidden_state.float(), inputs["attention_mask"], self._settings.pooling).cpu()

    def _encoded(self, messages: Sequence[Message], answer: str) -> dict[str, list[int]]:
        """The model's input: the last tokens of the question and the first of the answer, as the tokenizer joins them.

        A reward model with a chat template gets the conversation as the template renders it; others get a pair of texts.
        """
        room = self._most_tokens - ROOM_FOR_SPECIAL
        answer = self._first_tokens(whole_characters(answer), min(self._settings.max_answer_tokens, max(1, room * 3 // 4)))
        asked = min(self._settings.max_prompt_tokens, max(1, room - len(self._ids(answer))))
        if self._scores and (ids := self._conversation_ids(messages, answer, asked)) is not None:
            return {"input_ids": ids, "attention_mask": [1] * len(ids)}
        lines = [*left_out(messages, ""), *(f"{message.role}: {message.text}" for message in messages)]
        question = self._last_tokens(whole_characters("\n".join(lines)), asked)
        made = self._tokenizer(question, answer, truncation=True, max_length=self._most_tokens, split_special_tokens=True)
        return {name: list(made[name]) for name in self._tokenizer.model_input_names if name in made}

    def _conversation_ids(self, messages: Sequence[Message], answer: str, asked: int) -> list[int] | None:
        """The conversation by the chat template, its beginning cut; None where there is no template or it refuses these roles."""
        if not messages or self._tokenizer.chat_template is None:
            return None
        turns, arguments = template_inputs(messages)
        try:
            whole, opening = (
                self._tokenizer.apply_chat_template(some, add_generation_prompt=more, tokenize=False, **arguments)
                for some, more in (([*turns, {"role": "assistant", "content": answer}], False), (turns, True))
            )
        except Exception:  # noqa: BLE001 - the boundary to a template's own program, which raises what it likes at messages from anybody
            return None
        told = left_out(messages, opening)
        whole_ids, opening_ids = (self._ids(whole_characters("\n".join([*told, text])), special=True) for text in (whole, opening))
        return whole_ids[-(max(1, len(whole_ids) - len(opening_ids)) + asked) :]

    def _first_tokens(self, text: str, most: int) -> str:
        offsets = self._offsets(text)
        return text if len(offsets) <= most else text[: offsets[most - 1][1]]

    def _last_tokens(self, text: str, most: int) -> str:
        offsets = self._offsets(text)
        return text if len(offsets) <= most else text[offsets[-most][0] :]

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True)[
            "offset_mapping"
        ]
        return found

    def _ids(self, text: str, special: bool = False) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=not special).input_ids
        return ids


def load_sequence_model(backbone: Path, scores: bool, dtype: str) -> Any:
    """The model in this folder. Raises ConfigError when it is no reward model with one output, where one is asked for."""
    if not (backbone / "config.json").is_file():
        raise ConfigError(f"reward.backbone = {backbone} holds no model (no config.json)")
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        loader: Any = AutoModelForSequenceClassification if scores else AutoModel
        outputs = AutoConfig.from_pretrained(str(backbone), local_files_only=True).num_labels
        if scores and outputs != 1:
            raise ConfigError(f"reward.backbone = {backbone} has {outputs} outputs, but reward.backbone_kind = reward_model needs exactly one")
        model, told = loader.from_pretrained(str(backbone), local_files_only=True, dtype=getattr(torch, dtype), output_loading_info=True)
    except (ValueError, KeyError, OSError) as error:
        raise ConfigError(f"reward.backbone = {backbone} cannot be loaded as reward.backbone_kind says: {str(error)[:500]}") from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    if scores and told["missing_keys"]:
        raise ConfigError(
            f"reward.backbone = {backbone} has no weights for {sorted(told['missing_keys'])[0]}: it is no reward model, its output would be random"
        )
    return model


def pooled(states_BTH: Tensor, mask_BT: Tensor, pooling: Literal["mean", "first", "last"]) -> Tensor:
    """One vector ``[B, H]`` for each sequence: the mean of its tokens' states, or that of its first (BERT's CLS) or last token."""
    if pooling == "first":
        return states_BTH[:, 0]
    if pooling == "last":
        return states_BTH[torch.arange(len(states_BTH), device=states_BTH.device), mask_BT.sum(1) - 1]
    weights_BT1 = mask_BT[:, :, None].to(states_BTH.dtype)
    return (states_BTH * weights_BT1).sum(1) / weights_BT1.sum(1).clamp(min=1)


def _unused_id(encoded: Sequence[dict[str, list[int]]]) -> int:
    """The smallest token id that none of these sequences holds: padding that no sequence can end with."""
    used = {token for one in encoded for token in one["input_ids"]}
    return next(n for n in count() if n not in used)
