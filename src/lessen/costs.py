"""Kinds of cost: one name, one title and one direction a figure, wherever it is shown, gated or drawn.

A record keeps costs by name, `{"stored_bytes": 294285, ...}`; tables, gates, plots and CSV go through this list. What
measures a new figure registers its kind; a figure that nobody registered keeps its name as its title.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lessen.errors import ConfigError


@dataclass(frozen=True)
class CostKind:
    """One kind of cost."""

    name: str
    title: str
    unit: str = ""
    """"B" and "ms" and "s" choose how it is written; "" is a count."""
    more_is_better: bool = False
    relative: bool = True
    """Compared as a share of the reference; otherwise by its own value."""
    claim: str = ""
    """What a card says that claims to save it."""
    paired: str = ""
    """The figure that holds its ratio to the reference, measured in turns; that one's interval ends in `_ci`."""
    core: bool = False
    """Has its column in every CSV, measured or not."""
    trade: bool = False
    """Has its row in every trade table; other kinds have one where they were measured and are not core."""


_KINDS: dict[str, CostKind] = {}


def register(kind: CostKind) -> CostKind:
    """Add a kind and return it; the same one twice is no fault. Raises ConfigError if another has its name."""
    if _KINDS.setdefault(kind.name, kind) != kind:
        raise ConfigError(f"a cost called {kind.name!r} exists already; give this one a name of its own")
    return kind


def cost_kind(name: str) -> CostKind:
    """Return the kind called `name`; one that nobody registered is told by its ending."""
    known = _KINDS.get(name)
    if known is not None:
        return known
    if name.endswith("_ratio"):
        return CostKind(name, name.replace("_", " "), "x", relative=False)
    unit = next((unit for ending, unit in (("_bytes", "B"), ("_ms", "ms"), ("_s", "s")) if name.endswith(ending)), "")
    return CostKind(name, name.replace("_", " "), unit, paired=f"{name[:-3]}_ratio" if unit == "ms" else "")


def cost_kinds(names: Iterable[str] = ()) -> tuple[CostKind, ...]:
    """Return all registered kinds in the order in which they are shown, then those of other `names`."""
    return tuple(cost_kind(name) for name in dict.fromkeys((*_KINDS, *names)))


STORED = register(CostKind("stored_bytes", "stored bytes", "B", claim="bytes", core=True, trade=True))
RESIDENT = register(CostKind("resident_bytes", "memory held", "B", core=True, trade=True))
PARAMETERS = register(CostKind("params", "parameters", core=True, trade=True))
MACS = register(CostKind("macs", "multiply-adds", claim="macs", core=True, trade=True))
LATENCY = register(CostKind("latency_ms_p50", "latency, median", "ms", paired="latency_ratio", core=True, trade=True))
TAIL = register(CostKind("latency_ms_p95", "latency, 95th percentile", "ms", core=True))
RATIO = register(CostKind("latency_ratio", "latency ratio", "x", relative=False, claim="latency", core=True))
THROUGHPUT = register(CostKind("throughput_per_s", "throughput", "/s", more_is_better=True, core=True))
PEAK = register(CostKind("peak_rss_bytes", "peak memory", "B", core=True))
GROWTH = register(CostKind("peak_rss_growth_bytes", "peak memory growth", "B", core=True))
COMPRESSING = register(CostKind("compress_s", "time to compress", "s", core=True))
TRAINING = register(CostKind("train_s", "time to train", "s", core=True))
DECODED = register(CostKind("decoded_bytes", "decoded to be served", "B", relative=False))
# workloads beside the first, by their names
for _name, _title in (
    ("prefill", "reading the prompt"),
    ("decode", "writing, a call"),
    ("encode", "encoding"),
    ("query", "a query"),
):
    register(CostKind(f"{_name}_ms", f"{_title}, median", "ms", paired=f"{_name}_ratio"))
BITS_PER_PIXEL = register(CostKind("bits_per_pixel", "bits per pixel", "bit", claim="bits_per_pixel"))
KEY_VALUES = register(CostKind("kv_bytes", "keys and values a token", "B", claim="kv_bytes"))
TRAINED = register(CostKind("trained_params", "trained parameters", claim="trained_params"))
ADAPTER = register(CostKind("adapter_bytes", "adapter", "B", claim="adapter_bytes"))
INDEX = register(CostKind("index_bytes", "index", "B", claim="index_bytes"))
EXAMPLES = register(CostKind("examples_seen", "examples trained on", claim="examples_seen"))
