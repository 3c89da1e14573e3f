"""Other tokens in place of a prompt's pictures: any number of them, made from what the vision tower sees.

ids [B,N], pictures [P,3,H,W] -> tower [P,n,D] -> sight.see -> [m_i,C] for prompt i -> spliced where its pictures began
                                 words of the prompt [t_i,C] -'

The rest of the model runs as if prompts had been written that long: masks, positions, caches and later words follow.
Between tower and sight the host hands on what the projector would have been given, so that `generate` encodes once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lessen.architectures.visual_host import VisualHost, find_visual_host
from lessen.errors import InputError
from lessen.stored.base import StoredPatch
from lessen.stored.checks import whole
from lessen.tokens.visual.before import POOL_MARK
from lessen.tokens.visual.inside import MARK
from lessen.tokens.visual.later import Prompts, Shortened, cache_of, held_by, words_after
from lessen.tokens.visual.pictures import (
    find_placeholders,
    given_to,
    real_tokens,
    require_both,
    require_fit,
    require_pictures,
)

SPLICE_MARK = "_lessen_splice"
LARGEST = 1 << 16
"""Any whole number in a stored sight at most: no width, side or count is larger."""


class Sight(StoredPatch):
    """What a prompt sees of its pictures: a child of the model, whose tensors an artifact stores.

    All pictures of a prompt are one thing seen (frames of a video, an overview and its tiles).
    """

    not_exported = (
        "pictures become other tokens in front of its decoder, which no file format says; patch.prepare(inputs) gives "
        "the embeddings for a decoder that runs elsewhere"
    )
    child: ClassVar[str] = "sight"
    """Name of the child of the model."""
    reads_pooled: bool = False
    """Whether it looks at the tower's pooled output."""

    def see(self, seen: Seen) -> list[Tensor]:
        """Return what stands in place of the pictures of each prompt, [m_i, C]; [0, C] where it has none."""
        raise NotImplementedError(f"{type(self).__name__}.see")

    def attach(self, model: nn.Module) -> SplicePatch:
        """Put the sight into `model` and become its child.

        Raises:
            NothingMatchedError: `model` sees no pictures as tokens.
            InputError: pictures are spliced already, the host rearranges them itself, or a width does not fit.
        """
        patch = splice_pictures(model, self)
        model.add_module(self.child, self)
        return patch

    def fits(self, host: VisualHost) -> None:
        """Raise InputError where widths of the sight are not those of the host."""

    def added(self, patch: SplicePatch) -> list[Any]:  # noqa: ARG002 - most add none
        """Return handles of further hooks that this sight needs in the host."""
        return []


@contextmanager
def stored_values(config: Mapping[str, Any], real: tuple[str, ...] = ()) -> Iterator[None]:
    """Check values of a stored sight before anything is allocated, and turn its refusals into ValueError.

    Args:
        real: names of values that are no whole numbers.

    Raises:
        TypeError, ValueError: a value that makes no sense, or sizes that no machine holds.
    """
    for name, value in config.items():
        if name in real:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
                raise TypeError(f"{name} must be a number up to {LARGEST}, found {value!r}")
        elif value is not None and not isinstance(value, bool):
            for one in value if isinstance(value, (list, tuple)) else (value,):
                whole(name, one, 0, LARGEST)
    try:
        yield
    except InputError as error:
        raise ValueError(str(error)) from error


@dataclass
class Seen:
    """What a sight is given in one call."""

    host: VisualHost
    features: Tensor
    """[P, n, D], what the tower gives the projector."""
    counts: list[int]
    """Pictures of each prompt; their sum is P."""
    words: list[Tensor]
    """Embeddings of each prompt without its placeholders and padding, [t_i, C]."""
    pooled: Tensor | None
    """[P, D], the tower's pooled output (its class token), where it has one."""
    memory: Any = None
    """What the sight keeps for the layers of this prompt and for later words; it sets it itself."""

    def of_prompt(self, tensor: Tensor) -> list[Tensor]:
        """Return the part of a tensor [P, ...] that belongs to each prompt."""
        return list(torch.split(tensor, self.counts))

    def project(self, features: Tensor) -> Tensor:
        """Return the host's projection of features [..., D]."""
        width = features.shape[-1]
        whole: Tensor = self.host.projector.module.forward(features.reshape(1, -1, width))
        return whole.reshape(*features.shape[:-1], whole.shape[-1])


@dataclass
class SplicePatch:
    """A sight that is in place in a model."""

    model: nn.Module
    host: VisualHost
    sight: Sight
    handles: list[Any] = field(default_factory=list, repr=False)
    tokens: list[int] = field(default_factory=list)
    """That stood in place of the pictures of each prompt, at the last prompt with pictures."""
    lengths: list[int] = field(default_factory=list)
    """Of each spliced prompt at that time."""
    memory: dict[int, Any] = field(default_factory=dict, repr=False)
    """What the sight keeps for the call under way, by thread."""
    prompts: Prompts = field(default_factory=Prompts, repr=False)
    under_way: dict[int, dict[str, Tensor]] = field(default_factory=dict, repr=False)
    """What the tower gave that the projector has not passed on yet, by thread."""

    def prepare(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return inputs with `inputs_embeds` [B,M,C] and `attention_mask` [B,M] in place of ids and pictures.

        They are what the patch makes of `inputs` in every forward; an unpatched decoder reads them as well.

        Raises:
            InputError: placeholders do not fit the pictures, or there is none for them.
        """
        try:
            return _spliced(self, dict(inputs))
        finally:
            self.memory.pop(threading.get_ident(), None)
            self.prompts.end(None)

    def remembered(self) -> Any:
        """Return what the sight keeps for the call of this thread; None where no picture is seen."""
        return self.memory.get(threading.get_ident())

    def remove(self) -> None:
        """Undo the patch: the model is what it was before."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        if self.model.__dict__.get(SPLICE_MARK) is self:
            del self.model.__dict__[SPLICE_MARK]
        if self.model._modules.get(self.sight.child) is self.sight:
            del self.model._modules[self.sight.child]


def splice_pictures(model: nn.Module, sight: Sight) -> SplicePatch:
    """Let `model` see its pictures through `sight`, in place, in every forward and in `generate`.

    Raises:
        NothingMatchedError: `model` sees no pictures as tokens.
        InputError: pictures are seen through another sight already, or the host rearranges their patches itself.
    """
    if SPLICE_MARK in model.__dict__:
        raise InputError("pictures of this model are seen through another sight; call remove() on its patch first")
    host = find_visual_host(model)
    host.require_patches()
    sight.fits(host)
    patch = SplicePatch(model, host, sight)
    outer = host.outer.module
    tower = getattr(outer, "vision_tower", None)
    patch.handles = [
        model.register_forward_pre_hook(_refuse_labels, with_kwargs=True),
        outer.register_forward_pre_hook(_Splice(patch), with_kwargs=True),
        outer.register_forward_hook(_Forget(patch), always_call=True),
        host.projector.module.register_forward_pre_hook(_Before(patch)),
        host.projector.module.register_forward_hook(_Instead(patch)),
        *([tower.register_forward_hook(_Pooled(patch))] if isinstance(tower, nn.Module) else []),
        *sight.added(patch),
    ]
    model.__dict__[SPLICE_MARK] = patch
    return patch


# -- hooks are objects, so that a copied model has its own ----------------------------------------------------------
def _refuse_labels(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    if given_to(module, arguments, keywords).get("labels") is not None:
        raise InputError(
            "labels were given for prompts whose pictures become another number of tokens; take the loss of the last "
            "logits, where the words after the pictures stand as before"
        )


@dataclass
class _Splice:
    patch: SplicePatch

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if any(mark in self.patch.model.__dict__ for mark in (MARK, POOL_MARK)):
            raise InputError("pictures are spliced and pruned or pooled in one model; remove() one of both patches")
        given = given_to(module, arguments, keywords)
        if given.get("input_ids") is None:  # prepared already, or the host's own features are asked for
            return None
        cache = cache_of(given)
        if cache is not None and cache.get_seq_length() > 0:
            held = held_by(cache)
            if held is not None:
                self.patch.memory[threading.get_ident()] = held.memory
                given = words_after(held, given, cache.get_seq_length(), "spliced")
        else:
            held_by(cache)
            given = _spliced(self.patch, given)
        return (), given


@dataclass
class _Forget:
    patch: SplicePatch

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self.patch.memory.pop(threading.get_ident(), None)
        self.patch.prompts.end(output)


@dataclass
class _Pooled:
    patch: SplicePatch

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        pooled = getattr(output, "pooler_output", None)
        if isinstance(pooled, Tensor):
            self.patch.under_way.setdefault(threading.get_ident(), {})["pooled"] = pooled


@dataclass
class _Before:
    patch: SplicePatch

    def __call__(self, _module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        self.patch.under_way.setdefault(threading.get_ident(), {})["features"] = inputs[0]
        return (inputs[0][:, :1], *inputs[1:])  # the sight projects what it keeps


@dataclass
class _Instead:
    patch: SplicePatch

    def __call__(self, _module: nn.Module, _inputs: Any, _output: Any) -> Tensor:
        found = self.patch.under_way.pop(threading.get_ident())
        features = found["features"]
        if not self.patch.sight.reads_pooled:
            return features
        if "pooled" not in found:
            raise InputError(f"{self.patch.sight.kind} reads the pooled output of the tower, and this tower has none")
        if found["pooled"].shape[1] != features.shape[2]:
            raise InputError(
                f"{self.patch.sight.kind} reads the tower's pooled output beside its tokens, and they are of widths "
                f"{found['pooled'].shape[1]} and {features.shape[2]}: the host joins several layers of the tower"
            )
        # beside every token, so that a host which counts tokens finds as many
        return torch.cat([features, found["pooled"][:, None].expand(-1, features.shape[1], -1)], 2)


# -- one call -------------------------------------------------------------------------------------------------------
def _spliced(patch: SplicePatch, given: dict[str, Any]) -> dict[str, Any]:
    ids, pixels = given["input_ids"], given.get("pixel_values")
    mask = given.get("attention_mask")
    real = real_tokens(ids, mask, "pictures become other numbers of tokens")
    shown = find_placeholders(ids, patch.host.placeholders) & real
    encoded = (given.get("mm_encoder_outputs") or {}).get("image")
    require_both(int(shown.sum()), pixels is not None or encoded is not None)
    if not bool(shown.any()):
        return given
    features = _features(patch, pixels) if encoded is None else torch.stack(list(encoded.pooler_output))
    features, pooled = features.chunk(2, 2) if patch.sight.reads_pooled else (features, None)
    counts = _counts(shown, len(features), features.shape[1])
    table = patch.host.outer.module.get_input_embeddings()
    embeds: Tensor = table(ids)
    words = [line[keep] for line, keep in zip(embeds, real & ~shown, strict=True)]
    seen = Seen(patch.host, features, counts, words, None if pooled is None else pooled[:, 0])
    made = patch.sight.see(seen)
    patch.memory[threading.get_ident()] = seen.memory
    lines = []
    for row, tokens in enumerate(made):
        places = shown[row].nonzero()[:, 0]
        at = int(real[row, : places[0]].sum()) if len(places) else 0
        lines.append(torch.cat([words[row][:at], tokens.to(embeds.dtype), words[row][at:]]))
    patch.tokens, patch.lengths = [len(one) for one in made], [len(line) for line in lines]
    longest = max(patch.lengths)
    padded = [torch.cat([line.new_zeros(longest - len(line), line.shape[1]), line]) for line in lines]
    lengths = torch.tensor(patch.lengths, device=ids.device)
    fitted = torch.arange(longest, device=ids.device) >= longest - lengths[:, None]
    kept = fitted.to(torch.int64 if mask is None else mask.dtype)
    patch.prompts.begin(Shortened(kept, ids.shape[1], real.sum(1) - lengths, seen.memory))
    dropped = ("input_ids", "pixel_values", "position_ids", "image_sizes", "mm_encoder_outputs")
    rest = {name: value for name, value in given.items() if name not in dropped}
    ready: dict[str, Any] = {"inputs_embeds": torch.stack(padded), "attention_mask": kept}
    if given.get("position_ids") is not None:  # as `generate` counts them; without them the host counts columns
        ready["position_ids"] = (fitted.long().cumsum(1) - 1).clamp(min=0)
    return {**rest, **ready}


def _features(patch: SplicePatch, pixels: Any) -> Tensor:
    """Return what the tower gives the projector of pictures [P, 3, H, W]."""
    require_pictures(pixels)
    encoded = patch.host.outer.module.get_image_features(pixel_values=pixels, return_dict=True)
    return torch.stack(list(encoded.pooler_output))


def _counts(shown: Tensor, pictures: int, tokens: int) -> list[int]:
    """Return the pictures of each prompt. Raises InputError unless its placeholders are theirs."""
    found = shown.sum(1).tolist()
    bad = next((row for row, count in enumerate(found) if count % tokens), None)
    if bad is not None:
        raise InputError(
            f"prompt {bad} holds {found[bad]} picture placeholders, no whole number of pictures of {tokens} tokens; "
            "give the inputs as the processor made them"
        )
    require_fit(sum(found), [tokens] * pictures)
    return [count // tokens for count in found]
