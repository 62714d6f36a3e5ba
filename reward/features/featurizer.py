"""Features of an answer from a frozen backbone: its words, its meaning, and how it relates to the question.

Shapes: ``N`` pairs of (messages, answer), ``T`` tokens, ``H`` hidden size, ``D`` features. Four blocks, in this order:

- ``words`` (H): input embeddings of the answer's distinct tokens, whitened and summed, divided by the root of their number. A bag of words that
  knows synonyms. A preference for a manner of speaking is learned from it with the fewest labels.
- ``mean`` (H): mean of a lower-middle layer over the answer: what the answer says.
- ``last`` (H): state of a later layer at the end of the answer: the backbone's summary of the whole exchange.
- ``relation`` (8): how much of the question's words the answer covers, its length, and how much it repeats itself.

A text that is longer than one pass is read in windows (text_windows.py), whose states are pooled: the answer's first window once after each window of
the prompt, its other windows each after the tokens before them, in batches of equal length. ``mean`` is a mean over the answer's tokens, ``last``
over the ends of its windows. The window next to the answer weighs as much as all others of the prompt together. A short text is one window.

A pair's features do not depend on what other pairs are asked for: each pair runs on its own. Padding and batching change the last
bits of a matrix product, and then the same labels in another order would give another reward model.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from reward.families.base_folder import read_base
from reward.features.text_windows import answer_windows, prompt_windows
from reward.settings import RewardSettings
from streams.artifacts.artifact_store import fingerprint
from streams.core.chat_prompt import content_key, left_out, template_inputs
from streams.core.errors import ConfigError
from streams.core.events import Message

Pair = tuple[Sequence[Message], str]
COVERAGES, FORMS = 5, 3
RELATIONS = COVERAGES + FORMS
FEATURES_LAYOUT = 4
"""Increase it whenever the features change: models fitted on another layout must not score these."""
GAINS = (1.0, 0.4, 0.4)
"""Gain of each large block, chosen on simulated thumbs and on judged answers (benchmarks/reward.py)."""
RELATION_GAIN = 0.6
"""Gain of all ``relation`` features together. Within it, the answer's length is a block of its own."""
WHITENING_ROWS = 8192
WHITENING_FLOOR = 1e-2


class Features(Protocol):
    """Turns (messages, answer) pairs into features. Updater and learner depend on this protocol instead of a backbone."""

    fingerprint: str

    def features(self, pairs: Sequence[Pair]) -> Tensor: ...

    @property
    def blocks(self) -> tuple[tuple[int, float], ...]:
        """Size and gain of each block, in order; the sizes sum up to ``D``. A block's total variance is its gain squared."""


class Featurizer:
    """Features of (messages, answer) pairs by a frozen causal language model, cached by content. Thread-safe."""

    def __init__(self, backbone: Path, settings: RewardSettings | None = None) -> None:
        self._settings = settings = settings or RewardSettings()
        model, self._mean_layer, self._last_layer = load_trunk(backbone, settings, settings.precision)
        self._tokenizer = AutoTokenizer.from_pretrained(str(backbone), local_files_only=True)
        self._model = model.eval().requires_grad_(False)
        self._hidden = int(model.config.hidden_size)
        self._whitening_HH, self._centre_H = _whitening(self._model.get_input_embeddings().weight)
        sizes = f"{settings.max_prompt_tokens} {settings.max_answer_tokens} {settings.max_windows}"
        named = f"{fingerprint(backbone)} {FEATURES_LAYOUT} {settings.precision} {sizes}"
        self.fingerprint = hashlib.sha256(f"{named} {self._mean_layer} {self._last_layer}".encode()).hexdigest()
        self._cache: OrderedDict[bytes, Tensor] = OrderedDict()
        self._prefixes: dict[tuple[int, ...], Any] = {}
        """Keys and values of the last prompt's windows."""
        self._lock = Lock()

    @property
    def blocks(self) -> tuple[tuple[int, float], ...]:
        relation = tuple((size, RELATION_GAIN * (size / RELATIONS) ** 0.5) for size in (COVERAGES, 1, FORMS - 1))
        return (*((self._hidden, gain) for gain in GAINS), *relation)

    def features(self, pairs: Sequence[Pair]) -> Tensor:
        """Features of each pair: float32 ``[N, D]``, finite."""
        rows = [self._one(messages, answer) for messages, answer in pairs]
        return torch.stack(rows) if rows else torch.empty(0, 3 * self._hidden + RELATIONS)

    def clear_cache(self) -> None:
        """Empty the cache: it holds what people said, as features and as a prompt's keys and values."""
        with self._lock:
            self._cache.clear()
            self._prefixes.clear()

    def tokens(self, messages: Sequence[Message], answer: str) -> tuple[list[int], list[int]]:
        """The tokens of one window each: the prompt's last ones, and the answer's first ones followed by the end of text."""
        s = self._settings
        return list(self._prompt_windows(messages)[0]), [*self._ids(answer)[: s.max_answer_tokens], self._tokenizer.eos_token_id]

    def two_states(self, states: Sequence[Tensor], begin: int) -> tuple[Tensor, Tensor]:
        """Of the hidden states ``[1, T, H]`` after each layer: ``mean`` and ``last`` ``[H]`` of the answer that begins at token ``begin``."""
        answer_TH = states[self._mean_layer][0, begin:]
        return answer_TH[: max(1, len(answer_TH) - 1)].float().mean(0), states[self._last_layer][0, -1].float()

    def _one(self, messages: Sequence[Message], answer: str) -> Tensor:
        key = hashlib.sha256(f"{content_key(messages)}\x00{answer}".encode(errors="replace")).digest()
        with self._lock:
            if (known := self._cache.get(key)) is not None:
                self._cache.move_to_end(key)
                return known
            row_D = self._compute(messages, answer)
            if self._settings.feature_cache_pairs:
                self._cache[key] = row_D
                if len(self._cache) > self._settings.feature_cache_pairs:
                    self._cache.popitem(last=False)
        return row_D

    @torch.inference_mode()
    def _compute(self, messages: Sequence[Message], answer: str) -> Tensor:
        s, whole_ids = self._settings, self._ids(answer)
        windows = answer_windows(whole_ids, s.max_answer_tokens, s.max_windows)
        asked = next((m.text for m in reversed(messages) if m.role == "user"), "")
        asked_ids = self._ids(" " + asked)[-s.max_prompt_tokens * s.max_windows :]
        mean_H, last_H = self._pooled(self._prompt_windows(messages), windows, whole_ids)
        read_ids = [token for _, window in windows for token in window]
        words_H = self._words(read_ids)
        relation = torch.tensor(self._relation(asked_ids, read_ids) + form_of(whole_ids), device=words_H.device)
        row_D = torch.cat([words_H, mean_H, last_H, relation]).cpu()
        return torch.nan_to_num(row_D, nan=0.0, posinf=0.0, neginf=0.0)

    def _pooled(self, prompt: list[tuple[int, ...]], windows: list[tuple[int, tuple[int, ...]]], whole_ids: list[int]) -> tuple[Tensor, Tensor]:
        """``mean`` and ``last`` ``[H]`` of an answer in windows after a prompt in windows."""
        (_, first), *later = windows
        for gone in self._prefixes.keys() - set(prompt):
            del self._prefixes[gone]
        end = self._tokenizer.eos_token_id
        near, *further = [self.two_states(self._states(ids, (*first, end)), 0) for ids in prompt]
        if not further and not later:
            return near
        mean_H, last_H = near
        if further:
            mean_H, last_H = ((own + torch.stack(others).mean(0)) / 2 for own, others in zip(near, zip(*further, strict=True), strict=True))
        before = [*prompt[0], *whole_ids]
        at = len(prompt[0])
        rows = [(before[max(0, at + start - self._settings.max_prompt_tokens) : at + start], (*ids, end)) for start, ids in later]
        means, lasts = zip((mean_H, last_H), *self._states_of_rows(rows), strict=True)
        sizes_W1 = torch.tensor([[max(1, len(ids))] for _, ids in windows], dtype=torch.float32, device=mean_H.device)
        return (torch.stack(means) * sizes_W1).sum(0) / sizes_W1.sum(), torch.stack(lasts).mean(0)

    def _states_of_rows(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[Tensor, Tensor]]:
        """``mean`` and ``last`` of windows that each follow tokens of their own. Rows of equal lengths run in one pass."""
        found: list[tuple[Tensor, Tensor]] = []
        for (before, _), group in groupby(rows, key=lambda row: (len(row[0]), len(row[1]))):
            input_WT = torch.tensor([[*ids_before, *ids] for ids_before, ids in group], device=self._settings.device)
            states = self._model(input_ids=input_WT, use_cache=False, output_hidden_states=True).hidden_states
            found += [self.two_states([layer[w : w + 1] for layer in states], before) for w in range(len(input_WT))]
        return found

    def _states(self, prompt_ids: tuple[int, ...], answer_ids: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Hidden states ``[1, T, H]`` of the answer after each layer. The last prompt's keys and values are kept: samples come in groups."""
        past = self._prefixes.get(prompt_ids)
        if past is None:
            input_T = torch.tensor([prompt_ids], device=self._settings.device)
            past = self._prefixes[prompt_ids] = self._model(input_ids=input_T, use_cache=True).past_key_values
        past.crop(len(prompt_ids))  # without the answer before this one
        answer_T = torch.tensor([answer_ids], device=self._settings.device)
        states: tuple[Tensor, ...] = self._model(input_ids=answer_T, past_key_values=past, use_cache=True, output_hidden_states=True).hidden_states
        return states

    def _prompt_windows(self, messages: Sequence[Message]) -> list[tuple[int, ...]]:
        ids = self._ids(self._render(messages), special=True) or [self._tokenizer.eos_token_id]
        return prompt_windows(ids, self._settings.max_prompt_tokens, self._settings.max_windows)

    def _words(self, ids: Sequence[int]) -> Tensor:
        distinct = sorted(set(ids))
        whitened_TH = self._whitened(distinct)
        return whitened_TH.sum(0) / math.sqrt(len(distinct) + 1)

    def _relation(self, asked_ids: Sequence[int], answer_ids: Sequence[int]) -> list[float]:
        """Coverage of the question's tokens by the answer (cosine of whitened embeddings).

        A byte-pair vocabulary is sorted by frequency, so a token's number stands in for its rarity.
        """
        if not asked_ids or not answer_ids:
            return [0.0] * COVERAGES
        asked = torch.nn.functional.normalize(self._whitened(asked_ids), dim=-1)
        answered = torch.nn.functional.normalize(self._whitened(sorted(set(answer_ids))), dim=-1)
        cosine = asked @ answered.T
        best = cosine.max(1).values
        rarity = torch.tensor(asked_ids, dtype=torch.float32, device=best.device) / self._whitening_rows()
        return [
            best.mean().item(),
            best.min().item(),
            (best * rarity).sum().item() / max(1e-6, rarity.sum().item()),
            best[rarity.argmax()].item(),
            cosine.max(0).values.mean().item(),
        ]

    def _whitened(self, ids: Sequence[int]) -> Tensor:
        embeddings = self._model.get_input_embeddings().weight
        if not ids:
            return torch.zeros(1, self._hidden, device=embeddings.device)
        rows_TH = embeddings[torch.tensor(ids, device=embeddings.device)].float()
        return (rows_TH - self._centre_H) @ self._whitening_HH

    def _whitening_rows(self) -> int:
        return int(self._model.get_input_embeddings().weight.shape[0])

    def _ids(self, text: str, special: bool = False) -> list[int]:
        """Tokens of a text. Only our own rendering may contain special tokens; in a person's text they are ordinary characters."""
        ids: list[int] = self._tokenizer(whole_characters(text), add_special_tokens=False, split_special_tokens=not special).input_ids
        return ids

    def _render(self, messages: Sequence[Message]) -> str:
        """The prompt, rendered by the backbone's chat template; as plain lines when there is none or it refuses these roles."""
        turns, arguments = template_inputs(messages)
        if turns and self._tokenizer.chat_template is not None:
            try:
                text: str = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False, **arguments)
            except Exception:  # noqa: BLE001 - the boundary to a template's own program, which raises what it likes at messages from anybody
                pass
            else:
                return "\n".join([*left_out(messages, text), text])
        lines = [f"{message.role}: {turn['content']}" for message, turn in zip(messages, turns, strict=True)]
        return "\n".join([*left_out(messages, ""), *lines]) + "\nassistant: "


def load_trunk(backbone: Path, settings: RewardSettings, dtype: str) -> tuple[Any, int, int]:
    """The layers of the backbone that the features use, and the numbers of the mean and the last layer. Raises ConfigError."""
    if not (backbone / "config.json").is_file():
        raise ConfigError(f"{backbone} holds no model for the reward features (no config.json): set reward.backbone to a small dense model's folder")
    read_base(backbone, "reward.backbone")
    config = AutoConfig.from_pretrained(str(backbone), local_files_only=True)
    mean_layer, last_layer = (max(1, round(config.num_hidden_layers * ratio)) for ratio in (settings.mean_layer_ratio, settings.last_layer_ratio))
    config.num_hidden_layers = max(mean_layer, last_layer)  # higher layers are neither loaded nor run
    return load_model(backbone, config=config, dtype=getattr(torch, dtype)).to(settings.device), mean_layer, last_layer


def load_model(backbone: Path, **arguments: Any) -> Any:
    """The backbone without its output head. Silences transformers, which would report the head and the layers left out as a fault."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        return AutoModel.from_pretrained(str(backbone), local_files_only=True, **arguments)
    finally:
        transformers_logging.set_verbosity(verbosity)


def whole_characters(text: str) -> str:
    """The text without half surrogate pairs: JSON lets them through, tokenizers do not."""
    return text.encode(errors="replace").decode()


def form_of(ids: Sequence[int]) -> list[float]:
    """Length and repetition of the whole answer, beyond ``max_answer_tokens`` too: people see all of it."""
    return [math.log1p(len(ids)), len(ids) / 50, len(set(ids)) / max(1, len(ids))]


def _whitening(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric whitening of the embeddings ``[H, H]`` and their mean ``[H]``, from evenly spaced rows.

    Symmetric (ZCA), since the sign of an eigenvector is arbitrary and another machine may choose the other one.
    """
    step = max(1, weight.shape[0] // WHITENING_ROWS)
    rows = weight[::step].double()
    centre = rows.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((rows - centre).T))
    whitening = (vectors / (values.clamp(min=0) + WHITENING_FLOOR * values.max()).sqrt()) @ vectors.T
    return whitening.float(), centre.float()
