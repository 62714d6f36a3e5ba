"""Random tiny models of whole sequences, as folders in the form in which they are published: made in code, so no network is needed."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForSequenceClassification, BertModel, LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCABULARY = {token: n for n, token in enumerate((*SPECIAL, "<turn>", *(chr(c) for c in range(32, 127))))}
POSITIONS = 64
TEMPLATE = (
    "{%- for m in messages -%}<turn>{{ m['role'] }} {{ m['content'] }}{%- endfor -%}{%- if add_generation_prompt -%}<turn>assistant {%- endif -%}"
)


def tokenizer(pairs: bool, template: str | None = None) -> PreTrainedTokenizerFast:
    """One token a character. ``pairs``: as BERT's, which joins two texts; else with no token around, as a decoder's."""
    made = Tokenizer(WordLevel(VOCABULARY, unk_token="[UNK]"))
    made.pre_tokenizer = Split("", "isolated")
    if pairs:
        made.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[(token, VOCABULARY[token]) for token in ("[CLS]", "[SEP]")]
        )
    known: dict[str, Any] = {"unk_token": "[UNK]"}
    known |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"} if pairs else {"additional_special_tokens": ["<turn>"]}
    names = ["input_ids", "token_type_ids", "attention_mask"] if pairs else ["input_ids", "attention_mask"]
    fast = PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=names, model_max_length=POSITIONS if pairs else 10**30, **known)
    fast.chat_template = template
    return fast


def save(model: Any, words: PreTrainedTokenizerFast, folder: Path) -> Path:
    """The folder, as ``save_pretrained`` writes it."""
    model.save_pretrained(str(folder))
    words.save_pretrained(str(folder))
    return folder


def bert_settings(outputs: int = 1) -> BertConfig:
    """The configuration of a BERT of two small layers."""
    return BertConfig(vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                      max_position_embeddings=POSITIONS, num_labels=outputs, initializer_range=0.5, pad_token_id=0)  # fmt: skip


def bert_classifier(folder: Path, outputs: int = 1) -> Path:
    """A BERT with a classifier's head."""
    torch.manual_seed(0)
    return save(BertForSequenceClassification(bert_settings(outputs)), tokenizer(pairs=True), folder)


def bert_encoder(folder: Path) -> Path:
    """A BERT without a head."""
    torch.manual_seed(1)
    return save(BertModel(bert_settings(), add_pooling_layer=False), tokenizer(pairs=True), folder)


def llama_reward_model(folder: Path, template: str | None = TEMPLATE) -> Path:
    """A Llama with one output, a chat template and no padding token."""
    torch.manual_seed(2)
    made = LlamaConfig(vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
                       intermediate_size=32, max_position_embeddings=256, num_labels=1, initializer_range=0.5, pad_token_id=None,
                       bos_token_id=None, eos_token_id=None)  # fmt: skip
    return save(LlamaForSequenceClassification(made), tokenizer(pairs=False, template=template), folder)
