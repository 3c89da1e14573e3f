"""Talking to a model over several turns; the text of earlier turns is what later ones copy from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lessen.decoding.compare import compare
from lessen.decoding.decoder import Completion, Decoder
from lessen.errors import InputError


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text to be continued. Raises InputError when there are none or the text is damaged."""
    _check_text(text)
    ids = list(tokenizer(text)["input_ids"])
    if not ids:
        raise InputError("the prompt is empty; give some text to continue")
    return ids


def encode_chat(tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[int]:
    """Return the token ids of a conversation by the model's own template, ready for the answer.

    Raises:
        InputError: the tokenizer has no chat template or one that fails, or the last message is empty or damaged.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "this model has no chat template, so it cannot chat; give a text to continue: --completion with --prompt"
        )
    if not messages[-1]["content"].strip():
        raise InputError("the prompt is empty; give some text to answer")
    for message in messages:
        _check_text(message["content"])
    try:
        found = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=True)["input_ids"]
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"the model's chat template fails on this conversation ({reason}); use completion instead of chat, or "
            "mend chat_template in the model's folder"
        ) from error
    return list(found)


def _check_text(text: str) -> None:
    """Refuse text with bytes that were no UTF-8 when it was given to the program."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the prompt is not UTF-8 text: character {error.start + 1} is a stray byte") from error


class Chat:
    """A conversation: `ask` sends a message with all earlier turns and remembers the answer."""

    def __init__(self, decoder: Decoder, system: str | None = None) -> None:
        if decoder.tokenizer is None:
            raise InputError("a chat needs the tokenizer; give it to the Decoder")
        self.decoder = decoder
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []

    def ask(
        self, text: str, *, compared: bool = False, on_token: Callable[[int, int], None] | None = None, **options: Any
    ) -> tuple[str, Completion]:
        """Return the answer as text and tokens; with `compared`, plain decoding is timed as well."""
        turns = [*self.messages, {"role": "user", "content": text}]
        prompt = encode_chat(self.decoder.tokenizer, turns)
        run = partial(compare, self.decoder) if compared else self.decoder.complete
        (done,) = run([prompt], on_token=on_token, **options)
        answer = str(self.decoder.tokenizer.decode(done.tokens, skip_special_tokens=True))
        self.messages = [*turns, {"role": "assistant", "content": answer}]
        return answer, done
