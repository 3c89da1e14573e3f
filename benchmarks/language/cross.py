"""Every row of a language study judged on two texts: perplexity, KL to the original, flipped tokens, bits stored.

    python -m benchmarks.language.cross [--study studies/language-smollm2.yaml] [--rows GLOB] [--seconds 300]

`lessen run` does the same with artifacts, timing and a report; this takes quality alone, on news and, where
`--wikitext FILE` names the test part of WikiText-2, on its paragraphs too, and makes a model once for a row and the row
that only adds IntactKV to it. Weights are decoded once, before judging. Rows that the result holds are kept; nothing
new is begun after `--seconds` of processor time. `--keep FOLDER` keeps what the original says, so that a later run need
not ask it again; several runs may add to one result.
Tables of docs/weights.md are written from the result by `python -m benchmarks.language.cross_tables`.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

import lessen
from benchmarks.guides import RESULTS, ROOT
from benchmarks.language.cross_tables import figures
from benchmarks.language.fewbits import Judge
from lessen.data.text import documents
from lessen.environment import environment, package_version
from lessen.files import atomic_write, dump_json
from lessen.method import Context
from lessen.methods.sites import state_bytes
from lessen.methods.weights.intactkv import IntactKV
from lessen.recipe import Recipe
from lessen.stored.base import StoredModule

STUDIES = ROOT / "studies"
LEAST = 40
"""Characters that a paragraph of WikiText-2 has at least: headings are left out."""


class Kept(Judge):
    """A judge that finds what the original says in a file, or leaves it there."""

    def __init__(self, task: Any, original: nn.Module, folder: Path | None) -> None:
        texts = [ids.tolist() for _, ids in task._documents("test")]
        name = hashlib.sha256(json.dumps([task.describe(), texts], sort_keys=True).encode()).hexdigest()[:16]
        file = folder / f"{name}.pt" if folder is not None else None
        if file is not None and file.exists():
            self.task, self.original = task, torch.load(file)
            return
        super().__init__(task, original)
        if file is not None:
            torch.save(self.original, file)


def wikitext(task: Any, file: Path, count: int) -> Any:
    """Return the task with the first paragraphs of the first articles of WikiText-2 as its test documents."""
    found = []
    for article in documents(str(file), "article"):
        found += [part.strip() for part in article.split("\n") if len(part.strip()) >= LEAST][:1]
    task._read["test"] = [(text, torch.tensor(task._tokens(text)["input_ids"])) for text in found[:count]]
    return task


def densely(model: nn.Module) -> nn.Module:
    """Put each compact linear layer's own weights into a dense one, which judges the same weights faster."""
    for path, module in list(model.named_modules()):
        if isinstance(module, StoredModule) and hasattr(module, "in_features") and hasattr(module, "dequantise"):
            holder = module
            while isinstance(holder.bias, bool):  # a layer behind changed inputs has its child's
                holder = holder.layer
            dense = nn.Linear(module.in_features, module.out_features, bias=holder.bias is not None)
            dense.weight.data = module.dequantise().float()
            if holder.bias is not None:
                dense.bias.data = holder.bias.float()
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, dense)
    return model


def bits_of(model: nn.Module, original: nn.Module) -> float | None:
    """Return bits stored for each weight of what is no plain layer any more, everything at its place counted."""
    taken = weights = 0
    state = model.state_dict()
    for path, module in original.named_modules():
        if not isinstance(module, (nn.Linear, nn.Embedding)) or type(model.get_submodule(path)) is type(module):
            continue
        if path == "lm_head":  # tied: the embedding's own codes
            continue
        own: dict[int, Tensor] = {t.data_ptr(): t for name, t in state.items() if name.startswith(f"{path}.")}
        taken += sum(t.numel() * t.element_size() for t in own.values())
        weights += module.weight.numel()
    return round(8 * taken / weights, 4) if weights else None


def rows_of(study: dict[str, Any], wanted: str) -> list[tuple[str, list[Any]]]:
    return [(one["name"], one["steps"]) for one in study["recipes"] if fnmatch.fnmatch(one["name"], wanted)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=STUDIES / "language-smollm2.yaml")
    parser.add_argument("--rows", default="*", help="glob over names of recipes")
    parser.add_argument("--seconds", type=float, default=1e9, help="of processor time")
    parser.add_argument("--wikitext", type=Path)
    parser.add_argument("--paragraphs", type=int, default=16)
    parser.add_argument("--keep", type=Path, default=Path("out"))
    parser.add_argument("--model", help="in place of the study's: a folder or a GGUF file")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    study = yaml.safe_load(asked.study.read_text())
    result = RESULTS / f"{study['study'].replace('-', '_')}.json"
    given = {**study["task"], **({"model": asked.model} if asked.model else {})}
    task = lessen.get_task(given)
    record: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {
        "benchmark": study["study"], "command": "python -m benchmarks.language.cross", "rows": {},
        "environment": {**environment(1), "transformers": package_version("transformers")},
        "judged": {"news": {**task.describe(), "model": Path(given.get("model", "smollm2-135m-instruct")).name}},
    }  # fmt: skip
    asked.keep.mkdir(parents=True, exist_ok=True)
    texts = {"news": task}
    if asked.wikitext is not None:
        texts["wikitext"] = wikitext(lessen.get_task(given), asked.wikitext, asked.paragraphs)
        record["judged"]["wikitext"] = f"first paragraphs of the first {asked.paragraphs} articles of the test part"
    todo = [(name, steps) for name, steps in rows_of(study, asked.rows) if name not in record["rows"]]
    if not todo:
        return
    original = task.reference()
    judges = {name: Kept(each, original, asked.keep) for name, each in texts.items()}
    if "original" not in record["rows"]:
        add(record, result, "original", {"documents": {name: judge(original) for name, judge in judges.items()}})
    made: tuple[list[Any], nn.Module, dict[str, Any]] | None = None
    for name, steps in todo:
        if time.process_time() > asked.seconds:
            break
        start = time.process_time()
        if made is not None and steps == [*made[0], {"intactkv": {}}]:
            model, sizes = made[1], made[2]
            model = IntactKV().apply(model, task, Context(original=original))
        else:
            model, _ = Recipe.parse({"name": "row", "steps": steps}).apply(original, task, seed=0)
            sizes = {"bits": bits_of(model, original), "state_bytes": state_bytes(model)}
            model = densely(model)
            made = (steps, model, sizes)
        cpu = round(time.process_time() - start, 2)
        said = {one: judge(model) for one, judge in judges.items()}
        add(record, result, name, {"steps": steps, **sizes, "cpu_s": cpu, "documents": said})


def add(record: dict[str, Any], result: Path, name: str, row: dict[str, Any]) -> None:
    if result.exists():  # what another run found meanwhile
        record["rows"] = {**record["rows"], **json.loads(result.read_text())["rows"]}
    record["rows"][name] = row
    atomic_write(result, dump_json(record))
    print(name, row.get("bits"), {text: figures(one) for text, one in row["documents"].items()}, flush=True)


if __name__ == "__main__":
    main()
