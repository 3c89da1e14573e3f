"""A tokenizer as GGUF holds it: tokens in the order of their ids, kinds, merges or scores, and the chat template.

byte-level BPE ("gpt2")      merges; how text is cut first is a name that llama.cpp knows (`pre`)
SentencePiece BPE ("llama")  scores: llama.cpp merges what scores highest, so a token scores minus the rank of its merge

llama.cpp cuts text by the name alone: a tokenizer that cuts in another way would open, and read every text wrongly.
Such a tokenizer is refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from lessen.architectures import text_cuts
from lessen.architectures.loading import check_vocabulary
from lessen.errors import ConfigError

NORMAL, UNKNOWN, CONTROL, OWN, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens."""
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
UNMERGED = -1e6
"""Score of a token that no merge makes."""


@dataclass(frozen=True)
class Vocabulary:
    """What `write` puts into the file."""

    model: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str] | None = None
    scores: list[float] | None = None
    special: dict[str, int] = field(default_factory=dict)
    """Ids of bos, eos, unk and pad, where there are some."""
    adds_bos: bool = False
    adds_eos: bool = False
    template: str | None = None


def read(tokenizer: Any, rows: int) -> Vocabulary:
    """Return the vocabulary of a fast tokenizer, filled up with unused tokens to the model's rows.

    Raises:
        ConfigError: the tokenizer has more tokens than the model, or is of a kind that llama.cpp would read otherwise.
    """
    check_vocabulary(tokenizer, rows)
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            "the tokenizer has no tokenizer.json, from which GGUF metadata are made; save it as a fast one"
        )
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    model = whole["model"]
    if model["type"] != "BPE":
        raise ConfigError(
            f"a {model['type']} tokenizer cannot be written as GGUF here; known: byte-level and SentencePiece BPE"
        )
    parts = _parts(whole.get("pre_tokenizer"))
    tokens = [f"[PAD{number}]" for number in range(rows)]
    kinds = [UNUSED] * rows
    for token, number in tokenizer.get_vocab().items():
        if number < rows:
            tokens[number], kinds[number] = token, NORMAL
    pieces = not any(part["type"] == "ByteLevel" for part in parts)
    for number, added in tokenizer.added_tokens_decoder.items():
        if number < rows:
            kinds[number] = CONTROL if added.special else OWN
    if pieces:
        kinds = [BYTE if _BYTE_TOKEN.fullmatch(token) else kind for token, kind in zip(tokens, kinds, strict=True)]
    special = {
        name: number
        for name in ("bos", "eos", "unk", "pad")
        if (number := getattr(tokenizer, f"{name}_token_id", None)) is not None and number < rows
    }
    if pieces and "unk" in special:
        kinds[special["unk"]] = UNKNOWN
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    bos, eos = _ends(tokenizer)
    common: dict[str, Any] = {
        "tokens": tokens,
        "kinds": kinds,
        "special": special,
        "adds_bos": bos,
        "adds_eos": eos,
        "template": _template(tokenizer),
    }
    if not pieces:
        return Vocabulary(model="gpt2", pre=_cut(parts), merges=merges, **common)
    if not model.get("byte_fallback"):
        raise ConfigError(
            "a BPE tokenizer that is neither byte-level nor falls back to bytes cannot be written as GGUF here"
        )
    return Vocabulary(model="llama", pre="default", scores=_scores(tokens, merges), **common)


def _parts(described: Any) -> list[dict[str, Any]]:
    if not described:
        return []
    return list(described["pretokenizers"]) if described["type"] == "Sequence" else [described]


def _cut(parts: list[dict[str, Any]]) -> str:
    """Return llama.cpp's name for how text is cut before merging. Raises ConfigError for a way without a name."""
    named = text_cuts.name_of(parts)
    if named is None:
        raise ConfigError(
            f"the tokenizer cuts text in a way ({', '.join(part['type'] for part in parts)}) that llama.cpp has no "
            "name for here; known are the ways of GPT-2, SmolLM, Llama 3 and Qwen2"
        )
    return named


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    return [-float(ranks[token]) if token in ranks else UNMERGED for token in tokens]


def _ends(tokenizer: Any) -> tuple[bool, bool]:
    """Return whether the tokenizer puts its first and its last token around every text."""
    ids = tokenizer("a")["input_ids"]
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    return first is not None and ids[0] == first, last is not None and ids[-1] == last


def _template(tokenizer: Any) -> str | None:
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    return str(template) if template else None
