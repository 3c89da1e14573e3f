"""Keep the README's picture and table equal to a committed run of the demo.

python -m benchmarks.readme out/demo     take a finished demo into benchmarks/results/demo and the README
python -m benchmarks.readme --check      fail when the README differs from the committed run
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "demo"
PICTURE = ROOT / "docs" / "images" / "demo.png"
KEPT = ("measurements.jsonl", "frontier.csv", "frontier.md", "study.yaml", "baselines.json", "noise.json", "notes.json")
PAGES = (ROOT / "README.md", ROOT / "docs" / "index.md")
BLOCK = re.compile(r"(<!-- demo -->\n).*?(<!-- /demo -->)", re.DOTALL)


def block() -> str:
    """Return verdict sentence and trade table of the committed run, as Markdown."""
    text = (RESULTS / "frontier.md").read_text()
    sentence = next(line for line in text.splitlines() if line.startswith("**"))
    table = text.split("## The trade", 1)[1].strip().split("\n\n", 1)[0]
    return f"{sentence}\n\n{table}\n"


def rewritten(page: Path) -> str:
    """Return a page with its demo block replaced by the committed run's."""
    return BLOCK.sub(lambda found: f"{found[1]}{block()}{found[2]}", page.read_text())


def take(out: Path) -> None:
    """Copy a finished demo's figures into the repository and rewrite the pages."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(out / name, RESULTS / name)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(out / "frontier.png", PICTURE)
    for page in PAGES:
        page.write_text(rewritten(page))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, help="folder of a finished demo")
    parser.add_argument("--check", action="store_true", help="compare only")
    given = parser.parse_args()
    if given.check or given.out is None:
        stale = [page.name for page in PAGES if rewritten(page) != page.read_text()]
        print(
            "\n".join(
                f"{name} differs from benchmarks/results/demo; run: python -m benchmarks.readme" for name in stale
            )
        )
        return 1 if stale else 0
    take(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
