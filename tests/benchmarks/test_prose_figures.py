"""Figures in the sentences of the guides come from committed results too, or the test names them.

A figure is a number with a decimal point, or a whole one in a unit (percent, times, bytes, time). It stands in a marked
table of its page (those are written from results), or in a sentence or table row that is made from the results here
and in the helpers `prose_*`, or in one that states a setting.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

guides = pytest.importorskip("benchmarks.guides", reason="benchmarks are not part of this installation")
prose_judges = pytest.importorskip("prose_judges")
prose_language = pytest.importorskip("prose_language")
prose_rooms = pytest.importorskip("prose_rooms")

MARKED = re.compile(r"<!-- (\S+):begin -->.*?<!-- \1:end -->", re.DOTALL)
DEMO = re.compile(r"<!-- demo -->.*?<!-- /demo -->", re.DOTALL)
"""Held by `python -m benchmarks.readme --check`, which the tests of the documentation run."""
NOT_PROSE = (re.compile(r"```.*?```", re.DOTALL), re.compile(r"`[^`]*`"), re.compile(r"\]\([^)]*\)"),
             re.compile(r"arXiv:? \d+\.\d+"), re.compile(r"\b95 %"))  # fmt: skip
UNIT = r"(?:%|times|ms|s|min|minutes|seconds|kB|MB|GB)(?!\w)"
FIGURE = re.compile(rf"(?<![\w.,^-])(?:\d+\.\d+|\d[\d,]*(?= {UNIT}|x\b))")


def tokens() -> Iterator[str]:
    rows = {(row["budget"], row["method"]): row for run in guides.read("tokens_cifar10_share")["runs"]
            for row in run["rows"]}  # fmt: skip
    lost = -rows[0.6, "diffrate"]["change"][0]
    low = -rows[0.6, "diffrate"]["change"][1]
    assert lost < 0.3 < low
    yield f"At 60 % DiffRate loses {lost:.2f} points, less than 0.3, though its interval does not exclude 0.3"
    ahead = rows[0.4, "tome"]["diffrate_minus_it"]
    assert ahead[1] > 0
    yield f"the searched counts beat ToMe's by {ahead[0]:.1f} points, for certain"
    pictures = 100 * (rows[0.5, "tome"]["accuracy"] - rows[0.5, "diffrate"]["accuracy"])
    yield f"(ToMe is ahead by {pictures:.0f} pictures)"
    assert rows[0.5, "tome"]["cross_entropy_it_minus_diffrate"][1] > 0
    yield "The rows at 0.5 and 0.4 were made"
    for row in guides.read("tokens_mismatch")["rows"]:
        if row["model"] == "reference" and row["target"] == 16 and len(row["seeds"]) == 3:
            behind = row["right"]["mismatch"]["lost"][0]
            yield f"falls {behind:.1f} points behind one that was fine-tuned there"


def checkpoints() -> Iterator[str]:
    yield "A byte-level Transformer of 5.7 million parameters, AdamW (beta2 0.999)"
    size = guides.read("checkpoints_sizes")["lessen"]["near"]["raw_bytes"]
    yield f"{len(size)} checkpoints of {size[-1] / 1e6:.0f} MB"
    size = guides.read("checkpoints_ctr")["sizes"]["near, all rows"]["raw_bytes"]
    yield f"A CTR model of 4.8 million parameters in six tables of 50,000 rows, SparseAdam, {len(size)} checkpoints of {size[-1] / 1e6:.0f} MB"
    yield f"One checkpoint of {guides.read('checkpoints_memory')['near pack']['checkpoint_mb'] / 1e3:.1f} GB"


def embeddings() -> Iterator[str]:
    grown = guides.read("embeddings_growth")
    yield (
        f"{grown['rows'] / 1e6:.0f} million rows of {grown['dim']} values ({grown['float32_bytes'] / 1e9:.1f} GB in "
        f"float32) became {grown['file_bytes'] / 1e9:.1f} GB in {grown['write_s']:.0f} s at "
        f"{grown['write_peak_mb']:.0f} MB of memory, opened in {grown['open_ms']:.1f} ms, and were served at "
        f"{grown['second_pass_mlookups_s']:.0f} million lookups a second"
    )
    small = [row for row in guides.read("embeddings_movielens")["rows"] if row.get("share", 1) < 0.0105]
    assert max(row["auc_difference"] for row in small) < -0.06
    yield "On MovieLens 1 % is 1.8 kB, and everything loses more than 0.06"
    computed = [
        -row["auc_difference"]
        for row in guides.read("embeddings_synthetic")["rows"]
        if "auc_difference" in row and not row["composed"] and 0.045 < row["share"] < 0.51
        and re.match("tensor train|deep hash", row["recipe"])
    ]  # fmt: skip
    yield (
        f"(tensor trains, deep hashes) lose {min(computed):.2f} to {max(computed):.2f} on the synthetic log at 5 to 50 %"
    )


PAGES = {"tokens": tokens, "checkpoints": checkpoints, "embeddings": embeddings, "judging": prose_judges.judging,
         "distil": prose_judges.distil, "weights": prose_language.weights, "scales": prose_language.scales,
         "deploy": prose_language.deploy}  # fmt: skip


def stripped(text: str) -> str:
    for pattern in NOT_PROSE:
        text = pattern.sub("", text)
    return " ".join(text.split())


@pytest.mark.parametrize("page", sorted(path.stem for path in (guides.ROOT / "docs").glob("*.md")))
def test_figures_in_sentences_come_from_results(page: str) -> None:
    text = DEMO.sub("", (guides.ROOT / "docs" / f"{page}.md").read_text())
    measured = set(FIGURE.findall(" ".join(found[0] for found in MARKED.finditer(text))))
    text = MARKED.sub("", text)
    prose = stripped(text)
    for sentence in (*PAGES.get(page, lambda: iter(()))(), *prose_rooms.sentences(page)):
        assert stripped(sentence) in prose
        prose = prose.replace(stripped(sentence), "")
    assert not [
        prose[max(found.start() - 40, 0) : found.end() + 20]
        for found in FIGURE.finditer(prose)
        if found[0] not in measured
    ]
