"""What the compact forms of `nn.Embedding` and `nn.EmbeddingBag` share: sizes, bags, fields and a dense view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from lessen.stored import checks, kernels
from lessen.stored.base import StoredModule
from lessen.stored.fields import Segment, segments_of
from lessen.stored.kernels.located import Located
from lessen.stored.kernels.rows import Floats
from lessen.stored.kernels.sources import Source

MOST_FIELDS = 512
"""Fields that a kernel is written for: its lines grow with them."""
DTYPES = ("float32", "float16", "bfloat16", "float64")


class TableShape:
    """Sizes, pooling and output type of a table, read from a module or from a configuration."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        mode: str | None = None,
        include_last_offset: bool = False,
        segments: Any = (),
        output_dtype: str = "float32",
    ) -> None:
        self.rows = checks.whole("num_embeddings", num_embeddings, 1)
        self.dim = checks.whole("embedding_dim", embedding_dim, 1, 2**20)
        checks.elements("a table", self.rows, self.dim)
        self.padding_idx = checks.row_index("padding_idx", padding_idx, self.rows)
        self.mode = None if mode is None else checks.one_of("mode", mode, ("sum", "mean", "max"))
        self.include_last_offset = bool(checks.one_of("include_last_offset", include_last_offset, (False, True)))
        self.segments = checks.segments(segments, self.rows)
        self.dtype = getattr(torch, checks.one_of("output_dtype", output_dtype, DTYPES))

    @classmethod
    def of(cls, table: nn.Module) -> TableShape:
        """Read the shape of an `nn.Embedding`, `nn.EmbeddingBag` or stored embedding."""
        if isinstance(table, StoredEmbedding):
            return table.shape
        fields = segments_of(table) if hasattr(table, "segments") else ()
        rows, dim = int(table.num_embeddings), int(table.embedding_dim)  # type: ignore[arg-type]
        padding: Any = table.padding_idx
        dtype = str(table.weight.dtype).removeprefix("torch.")
        if isinstance(table, nn.EmbeddingBag):
            return cls(rows, dim, padding, table.mode, table.include_last_offset, fields, dtype)
        return cls(rows, dim, padding, segments=fields, output_dtype=dtype)

    def config(self) -> dict[str, Any]:
        """Return the JSON values that the constructor takes."""
        other = {} if self.dtype == torch.float32 else {"output_dtype": str(self.dtype).removeprefix("torch.")}
        return {
            "num_embeddings": self.rows,
            "embedding_dim": self.dim,
            "padding_idx": self.padding_idx,
            "mode": self.mode,
            "include_last_offset": self.include_last_offset,
            "segments": [list(segment) for segment in self.segments],
            **other,
        }


SHAPE_KEYS = (
    "num_embeddings",
    "embedding_dim",
    "padding_idx",
    "mode",
    "include_last_offset",
    "segments",
    "output_dtype",
)


def split_config(config: Mapping[str, Any]) -> tuple[TableShape, dict[str, Any]]:
    """Return the table's shape and the remaining keys of a configuration. Raises TypeError or ValueError."""
    known = {key: config[key] for key in SHAPE_KEYS if key in config}
    return TableShape(**known), {key: value for key, value in config.items() if key not in known}


class StoredEmbedding(StoredModule):
    """A drop-in for `nn.Embedding` (`mode` None) or `nn.EmbeddingBag`; subclasses implement `lookup`.

    `forward(input)` takes int32 or int64 ids of any shape [*] and returns [*, dim]; with a mode it takes
    `input, offsets, per_sample_weights` exactly as `nn.EmbeddingBag` does and returns [bags, dim]. It computes in
    float32 and answers in the type of the table that it replaced.
    """

    zero_padding: ClassVar[bool] = False
    """Whether a lookup of the padding id gives zeros; in bags it always counts as nothing."""
    any_id: ClassVar[bool] = False
    """Whether new ids behind the last are answered too, by a hash; other tables refuse them, as they do below 0."""
    factors: ClassVar[tuple[str, ...]] = ()
    """Names of inner tables whose rows are multiplied, so that a penalty on vectors does not apply to them."""

    def __init__(self, shape: TableShape) -> None:
        super().__init__()
        self.shape = shape
        self.num_embeddings, self.embedding_dim = shape.rows, shape.dim
        self.padding_idx, self.mode = shape.padding_idx, shape.mode
        self.include_last_offset = shape.include_last_offset

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Fields of the table; one over all rows if it has none."""
        return self.shape.segments or (Segment("all", 0, self.num_embeddings),)

    def config(self) -> dict[str, Any]:
        """Return the shape of the table, and what `extra_config` of the subclass adds."""
        return {**self.shape.config(), **self.extra_config()}

    def extra_config(self) -> dict[str, Any]:
        """Return the JSON values that the constructor takes after the shape."""
        return {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> StoredEmbedding:
        """Build an empty twin. Raises ValueError or TypeError for values that make no sense."""
        shape, extra = split_config(config)
        return cls(shape, **extra)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the row of each id: [*] to float32 [*, dim]."""
        raise NotImplementedError(f"{type(self).__name__}.lookup")

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Return rows, or bags of rows when the table replaced an `nn.EmbeddingBag`.

        Raises:
            IndexError: an id or an offset lies outside what it points into.
            TypeError, ValueError: ids of another type or shape, or arguments that only a bag takes.
        """
        ids = input.contiguous()  # a column of a batch is not, and searches among fields would warn of it
        if ids.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"ids must be int32 or int64, found {str(ids.dtype).removeprefix('torch.')}")
        if self.mode is None and (offsets is not None or per_sample_weights is not None):
            raise TypeError("offsets and per_sample_weights are for bags; this table looks up single ids")
        if per_sample_weights is not None:
            per_sample_weights = per_sample_weights.float()
        found = self.compiled(ids, offsets, per_sample_weights)
        if found is None:
            found = self.plain(ids, offsets, per_sample_weights)
        return found.to(self.shape.dtype)

    def plain(self, ids: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None) -> Tensor:
        """Answer `forward` with torch's operators. Raises IndexError for ids and offsets out of range."""
        self._check_ids(ids)
        if self.mode is None:
            return self.lookup(ids)
        flat, starts, weights = flat_bags(ids, offsets, per_sample_weights, self.include_last_offset)
        return self.bagged(ids, flat, starts, weights)

    def bagged(self, ids: Tensor, flat: Tensor, starts: Tensor, weights: Tensor | None) -> Tensor:
        """Return bags [bags, dim] of checked ids with torch's operators.

        Args:
            ids: as they were given, [bags, length] or flat.
            flat, starts, weights: the same as flat ids [n], offsets and weights [n] (see `flat_bags`).
        """
        if self.mode == "sum" and self.padding_idx is None:
            inner = self.gathered(flat)
            if inner is not None:
                return _inner_bags(*inner, starts, weights, self.include_last_offset)
            if ids.dim() == 2:
                rows = self.lookup(ids)
                return (rows if weights is None else rows * weights.view(ids.shape).unsqueeze(2)).sum(dim=1)
        return self._pool(flat, starts, weights)

    def _check_ids(self, ids: Tensor) -> None:
        """Refuse ids that `nn.Embedding` refuses, which a search or a hash would answer with another row."""
        if not readable(ids) or not ids.numel():
            return
        low, high = (int(end) for end in ids.aminmax())
        if low < 0 or (high >= self.num_embeddings and not self.any_id):
            raise IndexError(f"id out of range: found {low}..{high}, rows {self.num_embeddings}")

    def gathered(self, ids: Tensor) -> tuple[nn.Module, Tensor] | None:  # noqa: ARG002
        """Return (inner table, its row for each flat id) where a lookup is one gather, so that bags can be fused."""
        return None

    def source(self) -> Source | None:
        """Return how a compiled lookup reads a row, or None where only torch's operators can."""
        return None

    def compiled(self, ids: Tensor, offsets: Tensor | None, weights: Tensor | None) -> Tensor | None:
        """Answer `forward` with a compiled kernel, or return None where torch's operators must (see `kernels`)."""
        if not kernels.worthwhile(ids) or self.mode == "max" or (weights is not None and self.mode != "sum"):
            return None
        if len(self.shape.segments) > MOST_FIELDS:
            return None
        source = self.source()
        if source is None:
            return None
        if isinstance(source, Located):
            self._check_ids(ids)  # its lines compute a place for any number at all
        if self.mode is None:
            padding = self.padding_idx if self.zero_padding else None
            rows = kernels.look_up(source, self.embedding_dim, ids.reshape(-1), padding=padding)
            return None if rows is None else rows.view(*ids.shape, self.embedding_dim)
        if ids.dim() != (2 if offsets is None else 1):
            return None
        return kernels.look_up(
            source,
            self.embedding_dim,
            ids,
            None if offsets is None else offsets.to(ids.dtype),
            weights,
            last=self.include_last_offset and offsets is not None,
            mean=self.mode == "mean",
            padding=self.padding_idx,
        )

    def _without_padding(self, ids: Tensor, rows: Tensor) -> Tensor:
        """Return rows [*, dim] with zeros where ids [*] are padding."""
        if self.padding_idx is None:
            return rows
        return rows.masked_fill((ids == self.padding_idx).unsqueeze(-1), 0.0)

    def _pool(self, flat: Tensor, offsets: Tensor, weights: Tensor | None) -> Tensor:
        rows = self.lookup(flat)
        positions = torch.arange(flat.numel(), dtype=offsets.dtype, device=flat.device)
        padding = None
        if self.padding_idx is not None:
            # padding points at an appended row that the bag operator leaves out
            padding = flat.numel()
            rows = torch.cat([rows, rows.new_zeros(1, self.embedding_dim)])
            positions = positions.masked_fill(flat == self.padding_idx, padding)
        return functional.embedding_bag(
            positions,
            rows,
            offsets,
            mode=str(self.mode),
            per_sample_weights=weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding,
        )

    def dequantise(self) -> Tensor:
        """Return the dense table [num_embeddings, dim], float32."""
        with torch.no_grad():
            return self.lookup(torch.arange(self.num_embeddings, device=next(iter(self.state_dict().values())).device))

    def extra_repr(self) -> str:
        """Show the sizes when printed."""
        return ", ".join(f"{key}={value}" for key, value in self.config().items() if key != "segments")


def readable(values: Tensor) -> bool:
    """Tell whether values can be looked at now: on the CPU, and not in a call that torch records or transforms."""
    recorded = (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )
    return not recorded and type(values) in (Tensor, nn.Parameter) and values.is_cpu


def flat_bags(
    ids: Tensor, offsets: Tensor | None, weights: Tensor | None, last: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Turn [bags, length] ids into flat ids and offsets; flat ids need offsets.

    Args:
        last: the last offset is the end of the last bag, not a bag.

    Raises:
        ValueError: shapes that do not belong together.
        IndexError: offsets that do not rise from 0 to at most the number of ids.
    """
    if weights is not None and weights.shape != ids.shape:
        raise ValueError(f"per_sample_weights must have the shape of the ids, {tuple(ids.shape)}")
    if ids.dim() == 2:
        if offsets is not None:
            raise ValueError("offsets must be None when the ids are [bags, length]")
        bags, length = ids.shape
        offsets = torch.arange(bags + last, dtype=ids.dtype, device=ids.device) * length
        return ids.reshape(-1), offsets, None if weights is None else weights.reshape(-1)
    if ids.dim() != 1 or offsets is None or offsets.dim() != 1:
        raise ValueError(f"a bag lookup needs [bags, length] ids, or flat ids with offsets; found {tuple(ids.shape)}")
    if readable(offsets) and offsets.numel():
        steps = offsets[1:] < offsets[:-1]
        if int(offsets[0]) != 0 or int(offsets[-1]) > ids.numel() or bool(steps.any()):
            raise IndexError(f"offsets must rise from 0 to at most {ids.numel()}, the number of ids")
    return ids, offsets.to(ids.dtype), weights


def _inner_bags(table: nn.Module, rows: Tensor, offsets: Tensor, weights: Tensor | None, last: bool) -> Tensor:
    """Return sums of bags of rows of an inner table, by the operator made for its kind."""
    offsets = offsets.to(rows.dtype)
    if isinstance(table, nn.Embedding):
        return functional.embedding_bag(
            rows, table.weight, offsets, mode="sum", per_sample_weights=weights, include_last_offset=last
        )
    bags: Tensor = table.bags(rows, offsets, weights, last)  # type: ignore[operator]
    return bags


def source_of(table: nn.Module) -> Source | None:
    """Return how a compiled lookup reads a table inside another, or None: it is of no such kind, or is watched."""
    if table._forward_hooks or table._forward_pre_hooks:
        return None
    if isinstance(table, nn.Embedding):
        return Floats(table.weight) if table.weight.dtype == torch.float32 and table.max_norm is None else None
    if not isinstance(table, StoredEmbedding) or table.mode is not None:
        return None
    return None if table.zero_padding and table.padding_idx is not None else table.source()


def can_bag(table: nn.Module) -> bool:
    """Tell whether sums over bags of a table's rows can be left to one operator."""
    return isinstance(table, nn.Embedding) or (hasattr(table, "bags") and table.mode is None)


def inner_table(rows: int, dim: int, weight: Tensor | None = None) -> nn.Embedding:
    """Return a plain `nn.Embedding` holding `weight` [rows, dim], or zeros (pages are not touched)."""
    values = torch.zeros(rows, dim) if weight is None else weight.detach().float().contiguous()
    return nn.Embedding(rows, dim, _weight=values)


def gather_bytes(table: Tensor, ids: Tensor) -> Tensor:
    """Return rows of a uint8 table [rows, width] at flat ids [n]; widths of 2, 4 and 8 move as one number each."""
    word = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(table.shape[1])
    if word is None or not table.is_contiguous() or table.storage_offset() % table.shape[1]:
        return functional.embedding(ids, table)
    return table.view(word).view(-1).index_select(0, ids).view(torch.uint8).view(len(ids), table.shape[1])
