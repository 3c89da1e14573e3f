"""Trying an engine against the model's own decoding, past every window and switch that its configuration names.

Windows and switches are often thousands of places wide. So a view of the model, with the same weights, is given a
configuration in which they are a few places wide, and both decode that view: the code of the class is exercised, on
its own configuration, at the cost of a few short passes. The number is held elsewhere too where narrowing changes
nothing in the model's own logits; then the probe runs at full width, or refuses where that is long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lessen.architectures.context import context_of
from lessen.decoding.view import shared_view
from lessen.errors import NonFiniteError

_NARROW, _SWITCH = 5, 8
_LONGEST_PROBE = 600
_ORIGINAL = "original_max_position_embeddings"


def limits_of(model: Any) -> dict[str, int]:
    """Return the windows, chunks and switches that the model's configuration names and its context can pass."""
    config = model.config.get_text_config()
    context = context_of(config) or 1 << 30
    found = {name: value for name, value in vars(config).items() if _is_limit(name, value)}
    for parameters in _rope_parameters(config):
        if parameters.get("rope_type") == "longrope":
            found[_ORIGINAL] = parameters[_ORIGINAL]
    kinds = getattr(config, "layer_types", None)
    if getattr(config, "use_sliding_window", None) is False or (kinds and "sliding_attention" not in kinds):
        found.pop("sliding_window", None)
    if kinds and "chunked_attention" not in kinds:
        found.pop("attention_chunk_size", None)
    return {name: value for name, value in found.items() if value < context}


def _is_limit(name: str, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        return False
    named = "window" in name or name.endswith("chunk_size")
    return named and "layers" not in name and "pattern" not in name and not name.startswith("use_")


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    found = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in found.values() if isinstance(value, dict)]
    return nested or [found]


def narrowed(model: Any, names: Iterable[str]) -> Any:
    """Return a view of the model whose named windows and chunks are 5 places wide and whose switch is at position 8."""
    limits, view = limits_of(model), shared_view(model)
    widths = {name: min(limits[name], _SWITCH if name == _ORIGINAL else _NARROW) for name in names}
    for config in {id(each): each for each in (view.config, view.config.get_text_config())}.values():
        for name, width in widths.items():
            if isinstance(vars(config).get(name), int):
                setattr(config, name, width)
        for parameters in _rope_parameters(config):
            if _ORIGINAL in parameters and _ORIGINAL in widths:
                parameters[_ORIGINAL] = widths[_ORIGINAL]
    for module in view.modules():  # layers keep copies of what their configuration said
        for name, width in widths.items():
            held = vars(module).get(name)
            if held == limits[name] and not isinstance(held, bool):
                setattr(module, name, width)
    return view


def tokens_for(model: Any, count: int) -> list[int]:
    """Return token ids that do not repeat soon."""
    size = model.config.get_text_config().vocab_size
    return [(7 * step + step * step // 5 + 1) % size for step in range(count)]


@torch.inference_mode()
def agrees(engine: Any, model: Any) -> bool:
    """Compare a mixed round after a cut (two sequences, 3 and 1 new tokens) with the ordinary forward.

    Raises:
        NonFiniteError: the model gives NaN or infinity.
    """
    first, second = tokens_for(model, 8), tokens_for(model, 9)[5:]
    caches = [engine.new_cache(), engine.new_cache()]
    engine.run([(caches[0], first[:5]), (caches[1], [*second[:3], first[0], first[1]])])
    engine.cut(caches[1], 3)
    got = engine.run([(caches[0], first[5:]), (caches[1], second[3:])])
    wanted = [model(input_ids=torch.tensor([ids], device=model.device)).logits[0].float() for ids in (first, second)]
    want = torch.cat([wanted[0][5:], wanted[1][3:]])
    if not want.isfinite().all():
        raise NonFiniteError(f"{type(model).__name__} gives NaN or infinite logits; its weights are damaged")
    return float((got - want).abs().max()) <= _tolerance(model, want)


def _tolerance(model: Any, logits: Tensor) -> float:
    """Return how far logits may differ: by float rounding, or by what it moves where layers round their inputs.

    An activation that lies between two int8 codes falls to one or the other, and all layers after it see that. Measured
    on SmolLM2-135M: 6 % of the largest logit between any two orders of float sums.
    """
    share = 1e-3 if model.dtype == torch.float32 else 5e-2
    if any(getattr(module, "activations", "float") != "float" for module in model.modules()):
        share = 0.15
    return share * max(float(logits.abs().max()), 1e-6)


@torch.inference_mode()
def rehearses(make: Callable[[Any], Any], model: Any) -> bool:
    """Return whether the engine decodes as `generate` does past every window and switch.

    Args:
        make: builds the engine for a model or a view of it.
    """
    limits = limits_of(model)
    ids = tokens_for(model, _NARROW + _SWITCH + 2)
    before = _forward(model, ids)
    effects = {name: float((_forward(narrowed(model, [name]), ids) - before).abs().max()) for name in limits}
    tried = {name: effect for name, effect in effects.items() if effect > 0}
    wide = [limits[name] for name in limits if name not in tried]
    if wide and max(wide) > _LONGEST_PROBE:
        return False
    if wide and not _decodes_alike(make(model), model, max(wide) - 6, max(wide) + 3, float("inf")):
        return False
    if not tried:
        return True
    view, long = narrowed(model, tried), max(_NARROW, _SWITCH) + 3
    return _decodes_alike(make(view), view, 3, long, min(tried.values()))


def _decodes_alike(engine: Any, model: Any, short: int, long: int, effect: float) -> bool:
    """Compare decoding from a prompt before, and one beyond, what is tried; errors may be no part of its effect."""
    prompts = [tokens_for(model, long), tokens_for(model, long + 2)[2 : 2 + max(1, short)]]
    lengths = (4, long - max(1, short) + 4)
    wanted = [_generated(model, prompt, new) for prompt, new in zip(prompts, lengths, strict=True)]
    got = _teacher_forced(engine, prompts, [tokens for tokens, _ in wanted])
    want = torch.cat([logits for _, logits in wanted])
    error = float((got - want).abs().max())
    if model.dtype == torch.float32 and error > max(0.5 * effect, 1e-5 * float(want.abs().max())):
        return False
    return error <= _tolerance(model, want)


def _forward(model: Any, ids: Sequence[int]) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([list(ids)], device=model.device)).logits[0].float()
    return logits


@torch.inference_mode()
def counts_padding(model: Any) -> bool:
    """Return whether padding in front changes what `generate` says after a text, as where it is numbered like tokens.

    Models without position ids do so, such as the decoders of the Bart family.
    """
    prompt = tokens_for(model, _NARROW)
    alone, padded = _generated(model, prompt, 2)[1], _generated(model, prompt, 2, padding=3)[1]
    return float((alone - padded).abs().max()) > _tolerance(model, alone)


def _generated(model: Any, prompt: Sequence[int], new: int, padding: int = 0) -> tuple[list[int], Tensor]:
    """Return the greedy tokens after a prompt and the logits (new, vocabulary) they were chosen from."""
    ids = torch.tensor([[0] * padding + list(prompt)], device=model.device)
    mask = torch.ones_like(ids)
    mask[:, :padding] = 0
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=new,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
        eos_token_id=None,
    )
    return out.sequences[0, ids.shape[1] :].tolist(), torch.cat(list(out.logits)).float()


def _teacher_forced(engine: Any, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> Tensor:
    """Return the engine's logits for each text after its prompt: all prompts in a pass, drafts of three, one wrong."""
    caches = [engine.new_cache() for _ in prompts]
    rows = [[part] for part in engine.run(list(zip(caches, prompts, strict=True)), last_only=True).split(1)]
    done = [1] * len(prompts)
    while any(len(text) > count for text, count in zip(texts, done, strict=True)):
        active = [number for number, text in enumerate(texts) if len(text) > done[number]]
        work = []
        for number in active:
            fed = list(texts[number][done[number] - 1 : len(texts[number]) - 1][:3])
            reach = engine.reach(caches[number])
            room = 4 if reach is None else reach
            work.append((number, [*fed, fed[0]][:room], min(len(fed), room)))
        logits = engine.run([(caches[number], tokens) for number, tokens, _ in work])
        start = 0
        for number, tokens, right in work:
            rows[number].append(logits[start : start + right])
            start, done[number] = start + len(tokens), done[number] + right
            engine.cut(caches[number], len(prompts[number]) + done[number] - 1)
    return torch.cat([torch.cat(part) for part in rows])
