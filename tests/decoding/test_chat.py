from __future__ import annotations

import pytest

from lessen.decoding import Decoder
from lessen.decoding.chat import Chat, encode, encode_chat
from lessen.errors import InputError
from tiny_models import FLAT, llama

TEMPLATE = "{% for message in messages %}{{ message.role[0] }}:{{ message.content }};{% endfor %}a:"


@pytest.fixture
def talking(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    return tokenizer


def test_each_turn_sees_the_ones_before_it(talking):
    chat = Chat(Decoder(llama(max_position_embeddings=512), talking, costs=FLAT), system="x")
    first, done = chat.ask("hello", max_new_tokens=6)
    assert first == talking.decode(done.tokens, skip_special_tokens=True)
    chat.ask("again", max_new_tokens=6)
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert chat.decoder.report.prompt_tokens == len(encode_chat(talking, chat.messages[:4]))


def test_turns_can_be_compared(talking):
    chat = Chat(Decoder(llama(max_position_embeddings=512), talking, costs=FLAT))
    chat.ask("hello hello", compared=True, max_new_tokens=6)
    assert chat.decoder.report.comparison.identical == 1


def test_what_cannot_be_asked_is_refused(tokenizer, talking, model):
    with pytest.raises(InputError, match="prompt is empty"):
        encode_chat(talking, [{"role": "user", "content": "  "}])
    with pytest.raises(InputError, match="prompt is empty"):
        encode(talking, "")
    with pytest.raises(InputError, match="needs the tokenizer"):
        Chat(Decoder(model, costs=FLAT))


def test_a_model_without_a_template_is_refused(tokenizer):
    with pytest.raises(InputError, match="no chat template"):
        encode_chat(tokenizer, [{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{% for message in %}",
        "{{ messages[7].content }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_broken_template_is_refused_in_one_line(tokenizer, monkeypatch, template):
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(InputError, match="chat template fails") as caught:
        encode_chat(tokenizer, [{"role": "user", "content": "hi"}])
    assert "\n" not in str(caught.value)


def test_text_with_stray_bytes_is_refused(talking):
    stray = b"ab\xffcd".decode(errors="surrogateescape")
    with pytest.raises(InputError, match="character 3 is a stray byte"):
        encode(talking, stray)
    with pytest.raises(InputError, match="stray byte"):
        encode_chat(talking, [{"role": "user", "content": stray}])
