"""`lessen generate`: chat and completion with copied drafts, streamed, with a report of what drafting gained."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lessen.cli.output import AsJson, emit, line, say
from lessen.errors import ConfigError, InputError

if TYPE_CHECKING:
    from lessen.decoding import Completion, Decoder

PANEL = "Choosing tokens"


def register(app: typer.Typer) -> None:
    """Add the verb of this file."""
    app.command()(generate)


def generate(
    model: Annotated[
        str, typer.Argument(help="An artifact, smollm2-135m-instruct, a .gguf file, a Hugging Face folder or id.")
    ],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="Text; several are decoded together.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Read one prompt from a text file.")] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--completion",
            help="Answer a message, or continue a text (default: as the model's template has it).",
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message of the chat.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to emit at most.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.", rich_help_panel=PANEL)] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="0 keeps all tokens.", rich_help_panel=PANEL)] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, rich_help_panel=PANEL)] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(min=0.01, rich_help_panel=PANEL)] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Seed of the draws.", rich_help_panel=PANEL)] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop after this text; may be repeated.")] = None,
    max_time: Annotated[float | None, typer.Option(min=0.0, help="Stop after this many seconds.")] = None,
    assistant: Annotated[str | None, typer.Option(help="A smaller model with the same vocabulary.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16 (default: float32, or the artifact's own).")
    ] = None,
    key_length: Annotated[int, typer.Option(min=1, help="Tokens that must agree before copying.")] = 2,
    pack: Annotated[bool, typer.Option("--pack/--no-pack", help="Hold packed float32 weights if quicker.")] = True,
    screen: Annotated[
        bool, typer.Option("--screen/--no-screen", help="Choose greedy tokens through 8 bit scores if quicker; exact.")
    ] = True,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Print tokens as they come.")] = True,
    report: Annotated[
        bool, typer.Option("--report", help="Also decode plainly, compare, and say what it gained.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Generate text, faster where it repeats the prompt or earlier turns, with the output of plain decoding.

    Messages are read line by line from standard input, as one conversation, if neither --prompt nor --file is given.

    Example: lessen generate smollm2-135m-instruct -p "Say hello three times" --report
    """
    from lessen.cli.languages import open_language
    from lessen.decoding import Decoder, cost_store
    from lessen.files import read_text

    if report and temperature > 0:
        raise ConfigError("--report compares outputs token for token; use --temperature 0")
    texts = [*(prompt or ()), *([read_text(file, "--file")] if file is not None else ())]
    if not texts and chat is False:
        raise InputError("--completion needs --prompt or --file")
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
    if temperature > 0:
        options |= {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    if repetition_penalty != 1.0:
        options["repetition_penalty"] = repetition_penalty
    options |= {name: value for name, value in (("stop_strings", stop), ("max_time", max_time)) if value}
    show = _Show(stream, report, as_json)
    if report and max_time is not None:
        raise ConfigError("--report compares whole texts; limit them by --max-new-tokens and leave --max-time out")
    loaded, tokenizer = open_language(model, dtype)
    if chat is None:
        chat = _by_template(tokenizer, system, bool(texts))
    helper = open_language(assistant, dtype)[0] if assistant is not None else None
    _serve(loaded, helper)
    place = cost_store.place_of(loaded, pack)
    costs = cost_store.load(place)
    with Decoder(
        loaded, tokenizer, key_length=key_length, assistant=helper, pack=pack, screen=screen, costs=costs
    ) as decoder:
        if costs is not None and not decoder.costs_hold():
            decoder.tune()  # the machine is not what it was when the curve was kept
        if decoder.costs is not costs:
            cost_store.save(place, decoder.costs)
        if texts:
            _answer_all(decoder, _encoded(tokenizer, texts, chat, system), texts, options, show)
        else:
            _converse(decoder, system, options, show)


def _by_template(tokenizer: Any, system: str | None, asked: bool) -> bool:
    """Return whether to chat, and say so where a model can only continue a text."""
    if getattr(tokenizer, "chat_template", None):
        return True
    if system or not asked:
        return True  # only a chat has these; it says that the template is missing
    say("this model has no chat template: it continues the text (--chat and --completion choose)")
    return False


def _serve(*models: Any) -> None:
    """Decode once what no kernel reads, and say so."""
    from lessen.stored.serving import serve

    paths = [path for model in models if model is not None for path in serve(model)]
    if paths:
        say(f"storage only: {len(paths)} layers, such as {paths[0]}, have no kernel here and are held decoded")


@dataclass(frozen=True)
class _Show:
    """What to print, and how."""

    stream: bool
    report: bool
    as_json: bool


def _encoded(tokenizer: Any, texts: list[str], chat: bool, system: str | None) -> list[list[int]]:
    from lessen.decoding.chat import encode, encode_chat

    if not chat:
        return [encode(tokenizer, text) for text in texts]
    head = [{"role": "system", "content": system}] if system else []
    return [encode_chat(tokenizer, [*head, {"role": "user", "content": text}]) for text in texts]


def _answer_all(
    decoder: Decoder, prompts: list[list[int]], texts: list[str], options: dict[str, Any], show: _Show
) -> None:
    """Decode all prompts together and print them."""
    from lessen.decoding import compare

    live = _Stream(decoder.tokenizer) if show.stream and len(texts) == 1 and not show.as_json else None
    if show.report:
        done = compare(decoder, prompts, on_token=live, **options)
    else:
        done = decoder.complete(prompts, on_token=live, **options)
    outputs = [_output(decoder, text, each) for text, each in zip(texts, done, strict=True)]
    if show.as_json:
        emit({"outputs": outputs, "report": _report(decoder)})
        return
    if live is not None:
        live.end()
    else:
        for number, output in enumerate(outputs, start=1):
            if len(outputs) > 1:
                line(f"--- {number} of {len(outputs)}")
            line(output["text"])
    _say_context(decoder)
    if show.report:
        _say_report(decoder)


def _converse(decoder: Decoder, system: str | None, options: dict[str, Any], show: _Show) -> None:
    """Answer the lines of standard input as one conversation."""
    from lessen.decoding.chat import Chat

    talk = Chat(decoder, system)
    for text in _lines():
        live = _Stream(decoder.tokenizer) if show.stream and not show.as_json else None
        answer, done = talk.ask(text, compared=show.report, on_token=live, **options)
        if show.as_json:
            emit({"outputs": [_output(decoder, text, done)], "report": _report(decoder)})
            continue
        if live is not None:
            live.end()
        else:
            line(answer)
        _say_context(decoder)
        if show.report:
            _say_report(decoder)


def _lines() -> Iterator[str]:
    if sys.stdin.isatty():
        say("Type a message and press Enter; an empty line ends the conversation.")
    number = 0
    while True:
        number += 1
        try:
            text = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise InputError(f"standard input is not UTF-8 text (message {number}: {error.reason})") from error
        if not text.strip():
            return
        yield text.rstrip("\n")


def _output(decoder: Decoder, prompt: str, done: Completion) -> dict[str, Any]:
    text = decoder.tokenizer.decode(done.tokens, skip_special_tokens=True)
    return {"prompt": prompt, "text": text, "finish": done.finish, "new_tokens": len(done.tokens)}


def _report(decoder: Decoder) -> dict[str, Any] | None:
    return decoder.report.as_dict() if decoder.report is not None else None


def _say_context(decoder: Decoder) -> None:
    """Say on standard error when the model's context, and not the limit asked for, ended a text."""
    if decoder.report is not None and decoder.report.cut_by_context:
        say(decoder.report.context_line())


def _say_report(decoder: Decoder) -> None:
    for text in decoder.report.lines() if decoder.report is not None else ():
        sys.stderr.write(text + "\n")


class _Stream:
    """Prints tokens of one sequence as soon as they make whole words."""

    def __init__(self, tokenizer: Any) -> None:
        from lessen.architectures.loading import hugging_face

        self._printer = hugging_face().TextStreamer(tokenizer, skip_special_tokens=True)

    def __call__(self, _number: int, token: int) -> None:
        import torch

        self._printer.put(torch.tensor([token]))

    def end(self) -> None:
        """Print what is left."""
        self._printer.end()
