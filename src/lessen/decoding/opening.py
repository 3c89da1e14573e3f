"""The tokens that all texts of a served model start with: its start of text, its chat template, or a text of yours."""

from __future__ import annotations

from typing import Any

from lessen.decoding.chat import encode_chat
from lessen.errors import ConfigError

BOS, CHAT = "bos", "chat"
_MESSAGES = ("Hello", "a", "7", "\n", "é", "[x]")
"""First messages that begin in different ways: what their conversations share does not depend on the message."""


def opening(tokenizer: Any, what: str) -> list[int]:
    """Return the token ids that texts start with.

    Args:
        what: `bos`, the tokenizer's start of text (which many tokenizers do not add by themselves); `chat`, what every
            conversation under the chat template starts with, its default system message included; or a text, in which
            special tokens are read as such.

    Raises:
        ConfigError: the tokenizer has no start of text or no common beginning, or the text is empty.
    """
    if what == BOS:
        if tokenizer.bos_token_id is None:
            raise ConfigError("the tokenizer has no start-of-text token; set prefix=chat, or the text to start with")
        return [int(tokenizer.bos_token_id)]
    if what == CHAT:
        rows = [encode_chat(tokenizer, [{"role": "user", "content": f"{text}."}]) for text in _MESSAGES]
        found = rows[0]
        for row in rows[1:]:
            agreeing = next((n for n, (a, b) in enumerate(zip(found, row, strict=False)) if a != b), len(found))
            found = found[:agreeing]
        if not found:
            raise ConfigError("conversations under this chat template share no first token; set prefix to a text")
        return found
    ids = [int(token) for token in tokenizer(what, add_special_tokens=False)["input_ids"]]
    if not ids:
        raise ConfigError("prefix is an empty text; give the text to start with, bos or chat")
    return ids
