"""Are RTN, GPTQ and OAC at 3 bits told apart in perplexity? Many documents, each row judged on the same ones.

    python -m benchmarks.language.paired --wikitext wikitext-2/test.txt [--rows GLOB] [--keep FOLDER]

SmolLM2-135M-Instruct, float32, blocks 10 to 15 of 30 in groups of 64, calibrated as in `fewbits` (24 windows of 192
tokens of news). Judged: 24 news items, and the first paragraphs of 24 articles of WikiText-2's test part, which nothing
was calibrated on. Differences in nats a token are paired by document; their intervals are a jackknife's.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import lessen
from benchmarks.guides import RESULTS
from benchmarks.language.cross import Kept, add, bits_of, densely, wikitext
from benchmarks.language.cross_tables import apart, figures
from benchmarks.language.fewbits import rows
from lessen.environment import environment, package_version
from lessen.recipe import Recipe

RESULT = RESULTS / "language_paired.json"
NAMES = ("part 3 rtn", "part 3 gptq", "part 3 oac")
DOCUMENTS = 24


def main() -> None:
    """Make the rows that the result lacks, and print every row beside the one before it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wikitext", type=Path, required=True)
    parser.add_argument("--rows", default="*")
    parser.add_argument("--keep", type=Path, default=Path("out"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.keep.mkdir(parents=True, exist_ok=True)
    task = lessen.get_task({"name": "language-smollm2", "window": 192, "stride": 96})
    given = {"name": "language-smollm2", "documents": DOCUMENTS}
    texts = {"news": lessen.get_task(given), "wikitext": wikitext(lessen.get_task(given), asked.wikitext, DOCUMENTS)}
    record: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {
        "benchmark": "language_paired", "command": "python -m benchmarks.language.paired --wikitext FILE", "rows": {},
        "environment": {**environment(1), "transformers": package_version("transformers")},
        "judged": {"news": texts["news"].describe(), "wikitext": f"first paragraphs of the first {DOCUMENTS} articles"},
        "calibrated": task.describe(),
    }  # fmt: skip
    todo = [one for one in NAMES if one not in record["rows"] and fnmatch.fnmatch(one, asked.rows)]
    if todo:
        original = task.reference()
        judges = {name: Kept(each, original, asked.keep) for name, each in texts.items()}
        if "original" not in record["rows"]:
            add(record, RESULT, "original", {"documents": {name: judge(original) for name, judge in judges.items()}})
    for name in todo:
        start = time.process_time()
        made, _ = Recipe.parse({"name": "row", "steps": [rows()[name]]}).apply(original, task, seed=0)
        row: dict[str, Any] = {"step": rows()[name], "bits": bits_of(made, original)}
        made = densely(made)
        row["documents"] = {text: judge(made) for text, judge in judges.items()}
        add(record, RESULT, name, {**row, "cpu_s": round(time.process_time() - start, 1)})
    for name, row in record["rows"].items():
        print(name, {text: figures(each) for text, each in row["documents"].items()})
    print("\n".join(lines(record)))


def both(row: dict[str, Any]) -> dict[str, list[float]]:
    """Return the documents of both texts as one list."""
    texts = row["documents"]
    return {name: [*texts["news"][name], *texts["wikitext"][name]] for name in texts["news"]}


def lines(record: dict[str, Any]) -> list[str]:
    """Return every row, and what it loses more than the next one on each text and on both, as lines of Markdown."""
    made = [one for one in NAMES if one in record["rows"]]
    found = ["| rows | text | nats a token | KL |", "|---|---|---|---|"]
    for one, other in pairwise(made):
        for text in ("news", "wikitext", "both"):
            pair = [
                both(r) if text == "both" else r["documents"][text] for r in (record["rows"][n] for n in (one, other))
            ]
            parts = [apart(pair[0], pair[1], what) for what in ("nll", "kl")]
            said = " | ".join(f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in parts)
            found.append(f"| {one} - {other} | {text} | {said} |")
    return found


if __name__ == "__main__":
    main()
