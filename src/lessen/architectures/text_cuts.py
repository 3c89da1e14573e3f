"""How byte-level tokenizers cut text before they merge, by the names that GGUF files give to it (`tokenizer.ggml.pre`).

A library that reads or writes GGUF by another cut gives other tokens: "1969" is one token or four.
"""

from __future__ import annotations

from typing import Any

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
EXPRESSIONS = {"llama-bpe": _WORDS + r"\p{N}{1,3}" + _REST, "qwen2": _WORDS + r"\p{N}" + _REST}
"""Cuts by one expression: Llama 3 and Qwen2."""


def name_of(parts: list[dict[str, Any]]) -> str | None:
    """Return the name of a cut described as in tokenizer.json, or None for one that has none here."""
    kinds, last = [part["type"] for part in parts], parts[-1]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    if kinds == ["ByteLevel"] and last["use_regex"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"] and last["use_regex"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not last["use_regex"]:
        written = parts[0]["pattern"].get("Regex")
        return next((name for name, expression in EXPRESSIONS.items() if expression == written), None)
    return None


def cut_of(name: str) -> Any | None:
    """Return the pre-tokenizer of that name, or None for one that is not known here."""
    from tokenizers import Regex, pre_tokenizers

    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name not in EXPRESSIONS)
    if name == "gpt-2":
        return bytewise
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytewise])
    if name in EXPRESSIONS:
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(EXPRESSIONS[name]), "isolated"), bytewise])
    return None
