"""The parts of one block of a vision tower by their roles, and its attention with the projections it computed."""

from __future__ import annotations

import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.architectures.vit import Family, part_of
from lessen.errors import InputError

Positions = tuple[Tensor, Tensor]
"""Cosines and sines of the rotations of P patches, [P,d] or [B,1,P,d] each; leading tokens have none."""


class TowerBlock:
    """The parts of one block, and its attention with the projections it computed on the way."""

    def __init__(self, block: nn.Module, family: Family) -> None:
        self.block, self.family = block, family
        self.attention: Any = getattr(block, family.attention)
        inner = part_of(self.attention, family.query.rpartition(".")[0]) if "." in family.query else self.attention
        self.inner: Any = inner
        """The module that holds the projections of queries, keys and values."""
        heads = getattr(inner, "num_heads", None) or getattr(inner, "num_attention_heads", None)
        if not heads:
            raise InputError(f"{type(self.attention).__name__} does not say how many heads it has")
        self.heads = int(heads)
        self.query, self.key = LastOutput(), LastOutput()
        self.handles: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        """Find `norm1` and `norm2` in the block by the family's names."""
        if name in ("norm1", "norm2"):
            return getattr(self.block, getattr(self.family, name))
        raise AttributeError(name)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Return x [B,N,C] plus the second branch."""
        y = getattr(self.block, self.family.norm2)(x)
        last = getattr(self.block, self.family.mlp)
        if self.family.widening:
            return last(getattr(self.block, self.family.widening)(y), x)  # type: ignore[no-any-return]
        return x + self.residual(2, last(y))

    def width(self) -> int:
        """Return C, the width of the tokens."""
        return int(part_of(self.attention, self.family.fused or self.family.key).in_features)

    def residual(self, number: int, x: Tensor) -> Tensor:
        """Apply LayerScale and stochastic depth of branch 1 or 2."""
        for part in (f"scale{number}", f"drop{number}"):
            name = getattr(self.family, part)
            if name:
                x = getattr(self.block, name)(x)
        return x

    def attach(self) -> None:
        """Watch the projections of queries and keys, unless the attention returns them; any kernel will do."""
        if not hasattr(self.attention, "attend"):
            self.watch()

    def watch(self) -> None:
        """Watch the projections of queries and keys, whoever runs the attention."""
        if self.family.fused:
            fused = getattr(self.attention, self.family.fused)
            self.handles = [fused.register_forward_hook(self.key)]
        else:
            pairs = ((self.family.query, self.query), (self.family.key, self.key))
            self.handles = [part_of(self.attention, name).register_forward_hook(catch) for name, catch in pairs]

    def detach(self) -> None:
        """Remove the watching hooks."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def attend(self, x: Tensor, bias: Tensor | None, positions: Positions | None = None) -> Tensor:
        """Return the attention output [B,N,C].

        Args:
            bias: added to the logits of each key, [B,1,1,N]; or the host's own mask, boolean or not.
            positions: rotations of the patches, where the family turns them.
        """
        if hasattr(self.attention, "attend"):
            out, self.query.value, self.key.value = self.attention.attend(x, bias)
            return out  # type: ignore[no-any-return]
        if bias is not None and not self.family.bias_argument:
            return self.attend_by_parts(x, bias, positions)
        given: dict[str, Any] = {"position_embeddings": positions} if self.family.rotary else {}
        if bias is not None:
            given[self.family.bias_argument] = _like(bias, x)
        elif self._takes_mask():
            given[self.family.bias_argument] = None  # the unmasked kernel is the faster one, and keeps r = 0 bit-equal
        out = self.attention(x, **given)
        return out[0] if isinstance(out, tuple) else out  # type: ignore[no-any-return]

    def attend_by_parts(self, x: Tensor, bias: Tensor | None, positions: Positions | None = None) -> Tensor:
        """Return the attention output [B,N,C] computed here from the projections."""
        query, key, value = self.project(x)
        if positions is not None:
            query, key = (turn(each.transpose(1, 2), positions).transpose(1, 2) for each in (query, key))
        rate = float(getattr(self.inner, "dropout_prob", 0.0)) if self.inner.training else 0.0
        mask = None if bias is None else _like(bias, x)
        out = F.scaled_dot_product_attention(query, key, value, mask, rate)
        joined = self.project_out(out.transpose(1, 2).flatten(2))
        holder, _, name = self.family.output.rpartition(".")
        dropout = getattr(getattr(self.attention, holder), "dropout", None) if name and holder else None
        return joined if dropout is None else dropout(joined)

    def _takes_mask(self) -> bool:
        return bool(self.family.bias_argument) and self.family.name not in ("plain", "timm")

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of x [B,N,C], each [B,H,N,d]."""
        if self.family.fused:
            packed: Tensor = getattr(self.attention, self.family.fused)(x)
            packed = packed.view(*packed.shape[:2], 3, self.heads, -1)
            query, key, value = packed.unbind(2)
            query, key = self._normed(query, "q_norm"), self._normed(key, "k_norm")
        else:
            names = (self.family.query, self.family.key, self.family.value)
            query, key, value = (self._by_head(part_of(self.attention, n)(x)) for n in names)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def project_out(self, x: Tensor) -> Tensor:
        """Apply the output projection to joined heads [B,N,C]."""
        return part_of(self.attention, self.family.output)(x)  # type: ignore[no-any-return]

    def queries(self) -> Tensor:
        """Return the queries of the last attention, [B,N,H,d]."""
        if self.family.fused:
            return self._normed(self._split()[0], "q_norm")
        return self._by_head(self.query.value)

    def keys(self) -> Tensor:
        """Return the keys of the last attention, [B,N,H,d]."""
        if self.family.fused:
            return self._normed(self._split()[1], "k_norm")
        return self._by_head(self.key.value)

    def seen(self) -> bool:
        """Tell whether the last attention called its projections as modules, so that they could be watched."""
        watched = (self.key,) if self.family.fused else (self.query, self.key)
        return all(catch.value.numel() for catch in watched)

    def forget(self) -> None:
        """Let go of the projections: held until the next forward they would keep memory from being used again."""
        self.query.value = self.key.value = torch.empty(0)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1)

    def _split(self) -> tuple[Tensor, Tensor]:
        packed = self.key.value.view(*self.key.value.shape[:2], 3, self.heads, -1)
        return packed[:, :, 0], packed[:, :, 1]

    def _normed(self, x: Tensor, name: str) -> Tensor:
        """Apply timm's query/key norm, which acts on the last dimension."""
        norm = getattr(self.attention, name, None)
        return x if norm is None else torch.as_tensor(norm(x))


def turn(x: Tensor, positions: Positions) -> Tensor:
    """Rotate queries or keys [B,N,H,d] of the last P tokens by their positions: x cos + half-turned x sin."""
    cosine, sine = (part.unsqueeze(-2) if part.dim() == 2 else part.transpose(1, 2) for part in positions)
    leading = x.shape[1] - cosine.shape[-3]
    patches = x[:, leading:]
    first, second = patches.chunk(2, -1)
    turned = patches * cosine + torch.cat([-second, first], -1) * sine
    return torch.cat([x[:, :leading], turned], 1) if leading else turned


def _like(bias: Tensor, x: Tensor) -> Tensor:
    return bias if bias.dtype == torch.bool else bias.to(x.dtype)


class LastOutput:
    """A forward hook that keeps the last output, each thread its own; an object, so that a copied model has one too."""

    def __init__(self) -> None:
        self._traced: Tensor = torch.empty(0)
        self._own = threading.local()

    def __deepcopy__(self, memo: dict[int, Any]) -> LastOutput:
        """Return a new one: what was caught is the original's."""
        return LastOutput()

    def __reduce__(self) -> tuple[type[LastOutput], tuple[()]]:
        """What was caught does not travel."""
        return LastOutput, ()

    @property
    def value(self) -> Tensor:
        """What this thread caught last; empty if nothing."""
        if torch.compiler.is_compiling():  # a trace is one call, and thread-local values cannot be traced
            return self._traced
        value: Tensor = getattr(self._own, "value", self._traced)
        return value

    @value.setter
    def value(self, value: Tensor) -> None:
        if torch.compiler.is_compiling():
            self._traced = value
        else:
            self._own.value = value

    def __call__(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        """Keep `output`."""
        self.value = output
