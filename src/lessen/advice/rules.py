"""The rules by which recipes are proposed, each with its reason; quantisation always comes last in a recipe.

Source: decision rules drawn from "A Survey on Transformer Compression" (arXiv 2402.05964): without training, 8 bits and
then 4, then one-shot structure of at most a fifth; with hours of training, structure of a third to a half and learning
from the uncompressed model, fewer than 4 bits; fetching weights asks for fewer bits, multiplying for int8 inputs, less
width and fewer tokens; sparsity counts as storage where nothing here multiplies from it. The survey knows no tables of
rows: theirs are ordered by the same ladder and by `docs/embeddings.md`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lessen.advice.situation import MATTERS, Situation

Step = dict[str, dict[str, Any]]
STAGES = (
    "no training, 8 bits or nothing lost",
    "no training, about 4 bits",
    "no training, parts cut out and 4 bits",
    "training",
    "storage only",
)
"""What the stages of advice are called, least risk first."""


@dataclass(frozen=True)
class Proposal:
    """A recipe to try and why, before it is known whether it fits the model."""

    stage: int
    steps: tuple[Step, ...]
    reason: str


def proposals(now: Situation) -> Iterator[Proposal]:
    """Yield what the rules propose, stage by stage, likeliest first."""
    for rule in (_eight, _four, _cut, _trained, _stored):
        yield from rule(now)


def _has(share: float) -> bool:
    return share >= MATTERS


def _eight(now: Situation) -> Iterator[Proposal]:
    rows: Step = {"emb-rowwise-quant": {"bits": 8}}
    layers: Step = {"linear-int8": {}} if not now.memory_bound or not now.kernels else {"rtn": {"bits": 8}}
    why = _why_layers(now)
    if _has(now.tables) and not now.blocks:
        yield Proposal(0, (rows,), f"{_percent(now.tables)} of the bytes are rows of tables; 8 bits hardly move them")
    if _has(now.linears):
        yield Proposal(0, (layers,), f"{_percent(now.linears)} of the bytes are linear layers; {why}")
        yield Proposal(
            0, ({"linear-half": {}},), "half the bytes of linear layers, less precision than any metric sees"
        )
    if _has(now.tables) and _has(now.linears) and not now.blocks:
        yield Proposal(0, (rows, layers), "rows and layers together: families add up")
    if _has(now.convolutions):
        yield Proposal(0, ({"fold": {}},), "norms are folded into what stands before them: no output changes")
        if "calibration" in now.gives:
            yield Proposal(0, ({"int8-static": {}},), "convolutions in int8 on ranges that calibration fixes")


def _four(now: Situation) -> Iterator[Proposal]:
    rows: Step = {"emb-rowwise-quant": {"bits": 4}}
    if _has(now.tables) and not now.blocks:
        yield Proposal(1, (rows,), "rows stand 4 bits with a scale each; nothing is trained")
        if _has(now.linears):
            yield Proposal(1, (rows, {"linear-int8": {}}), "rows at 4 bits, layers at 8: the usual first pair")
    if _has(now.linears):
        speed = {"activations": "int8"} if now.kernels and not now.memory_bound else {}
        if "calibration" in now.gives and now.blocks:
            yield Proposal(1, ({"gptq": {"bits": 4, **speed}},), "4 bits, errors made good on calibration data")
        yield Proposal(
            1, ({"rtn": {"bits": 4, **speed}},), "4 bits without data: the baseline of every calibrated method"
        )
        if _has(now.tables) and not now.blocks:
            yield Proposal(
                1, (rows, {"rtn": {"bits": 4, "table_bits": None, "min_weights": 64}}), "rows and layers at 4 bits"
            )
        yield Proposal(
            1, ({"rtn": {"bits": 3, **speed}},), "3 bits without data: a model of few weights rarely stands it"
        )
    if now.blocks and not now.memory_bound and "images" in now.gives:
        yield Proposal(1, ({"tome": {}},), "a call is bound by multiplying: fewer tokens cost less, no weight changes")


def _cut(now: Situation) -> Iterator[Proposal]:
    four: Step = {"rtn": {"bits": 4}}
    if _has(now.linears) and not now.blocks and "calibration" in now.gives:
        low: Step = {"linear-low-rank": {"energy": 0.95}}
        yield Proposal(2, (low,), "layers of a low rank multiply less on any machine")
        yield Proposal(2, (low, {"linear-int8": {}}), "low rank first, int8 last")
        if _has(now.tables):
            rows: Step = {"emb-rowwise-quant": {"bits": 4}}
            yield Proposal(
                2, (low, rows, {"linear-int8": {}}), "low rank, then rows at 4 bits, then int8: what `demo` keeps"
            )
    if _has(now.tables) and not now.blocks and "calibration" in now.gives:
        yield Proposal(
            2,
            ({"emb-prune-rows": {"keep": 0.8}}, {"emb-rowwise-quant": {"bits": 4}}),
            "rows that are hardly read, then 4 bits",
        )
    if now.blocks > 3:
        small: Step = {"magnitude-pruning": {"share": 0.8}}
        yield Proposal(2, (small,), "a fifth of heads and units in one shot is what a model stands untrained")
        yield Proposal(2, (small, four), "cut first, quantise last: sizes multiply")
        if "calibration" in now.gives:
            yield Proposal(2, ({"layer-drop": {"layers": 0.85}}, four), "blocks that change least, then 4 bits")


def _trained(now: Situation) -> Iterator[Proposal]:
    if not now.trains:
        return
    if _has(now.tables) and not now.blocks:
        why = "tables trained anew in a smaller form; a run trains once"
        yield Proposal(3, ({"emb-lsq": {}},), "rows trained with their few bits, in place of rounded afterwards")
        yield Proposal(3, ({"emb-hash": {"ratio": 0.5}},), why)
        yield Proposal(3, ({"emb-qr": {}},), why)
        yield Proposal(3, ({"emb-dpq": {}},), why)
    if now.blocks > 1:
        half: Step = {"magnitude-pruning": {"share": 0.5}}
        yield Proposal(
            3,
            (half, {"kd": {}}),
            "training makes good what half the heads and units took; the uncompressed model teaches",
        )
        yield Proposal(3, (half, {"kd": {}}, {"rtn": {"bits": 4}}), "cut, learn, quantise last")
    if _has(now.tables) and not now.blocks and _has(now.linears):
        yield Proposal(3, ({"emb-lsq": {}}, {"linear-int8": {}}), "rows trained at few bits, layers rounded last")


def _stored(now: Situation) -> Iterator[Proposal]:
    if _has(now.linears) or _has(now.convolutions):
        yield Proposal(
            4, ({"magnitude-sparsity": {}},), "zeros are stored as none; whether they are quicker the time says"
        )
        yield Proposal(4, ({"weight-clustering": {}},), "weights of few values: smaller files, decoded to be served")


def _why_layers(now: Situation) -> str:
    if now.memory_bound and now.kernels:
        return "a call is bound by fetching weights, which 8 bits make a quarter"
    return (
        "a call is bound by multiplying, which int8 inputs make quicker"
        if not now.memory_bound
        else "8 bits make them a quarter"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
