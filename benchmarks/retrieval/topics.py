"""Topics from keywords on Cranfield: which documents answer a query whose words are all that is known.

    python -m benchmarks.retrieval.topics --data FOLDER --cache FOLDER

The keywords of a topic are the words of a query that stand in at most half of the documents; relevant are the documents
that people said answer it. Area under the ROC curve over 1,400 documents, interval over 225 topics. Rows: the keywords
alone, Lbl2Vec with 1, 3, 10 or 30 documents a topic, with word counts and with MiniLM (64 tokens, vectors made by
benchmarks.retrieval.swap); the same with documents held as int8 codes or 48 bytes of product codes; the controls have
another topic's keywords. Nothing is trained.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.retrieval.records import interval, write
from lessen.data.collection import read_cranfield
from lessen.retrieval.topics import TopicSettings, find_topic, scores
from lessen.retrieval.words import WordVectors, words_of
from lessen.stored.vectors.flat import Int8Vectors
from lessen.stored.vectors.product import ProductVectors
from lessen.tasks.retrieval.readers import TextReader


def area(found: Tensor, relevant: list[int]) -> float:
    """Return the area under the ROC curve of one topic, ties counted half."""
    right = torch.zeros(len(found), dtype=torch.bool)
    right[relevant] = True
    own, other = found[right], found[~right]
    return float(((own[:, None] > other).double() + 0.5 * (own[:, None] == other).double()).mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--cache", type=Path, help="vectors of MiniLM; without it, word counts alone")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    held = read_cranfield(Path(asked.data))
    texts = [text or "." for text in held.documents]
    counted = WordVectors(texts, 2048)
    keywords = [sorted({word for word in words_of(query) if word in counted.places}) for query in held.queries]
    known = sorted({word for words in keywords for word in words})
    kinds = {"words": (counted(texts), dict(zip(known, counted(known), strict=True)))}
    if asked.cache is not None:
        parts = [
            torch.load(asked.cache / f"float32-documents-{at}.pt", weights_only=True) for at in range(0, 1400, 256)
        ]
        own = TextReader("minilm-l6", length=64).vectors(known, known)
        kinds["MiniLM"] = torch.cat(parts), dict(zip(known, own, strict=True))
    each: dict[str, list[float]] = {}
    for kind, (documents, vectors) in kinds.items():
        forms = {"": documents}
        forms[", int8"] = Int8Vectors.of(documents).dequantise()
        if kind == "MiniLM":
            forms[", 48 bytes"] = ProductVectors.of(documents, groups=48).dequantise()
        for number, words in enumerate(keywords):
            relevant = sorted(held.grades[number])
            own = torch.stack([vectors[word] for word in words])
            other = torch.stack([vectors[word] for word in keywords[(number + 1) % len(keywords)]])
            query = F.normalize(own, dim=1).mean(dim=0)

            def note(name: str, found: Tensor, relevant: list[int] = relevant, kind: str = kind) -> None:
                each.setdefault(f"{kind}: {name}", []).append(area(found, relevant))

            note("keywords alone", documents @ query)
            note("control: another topic's keywords", scores(documents, [find_topic(other, documents)])[:, 0])
            for said, form in forms.items():
                for count in (1, 3, 10, 30):
                    if said and count != 10:
                        continue
                    topic = find_topic(own, form, TopicSettings(at_least=count))
                    note(f"topic of {count}{said}", scores(form, [topic])[:, 0])
    rows: dict[str, Any] = {}
    for name, values in each.items():
        base = np.asarray(each[f"{name.partition(':')[0]}: keywords alone"])
        rows[name] = {"auc": interval(np.asarray(values)), "over_keywords": interval(np.asarray(values) - base)}
    for name in [one for one in rows if one.endswith(("int8", "bytes"))]:
        whole = np.asarray(each[name.rpartition(",")[0]])
        rows[name]["from_float32"] = interval(np.asarray(each[name]) - whole)
    write("retrieval_topics", "topics", "", {"topics": len(keywords), "documents": len(texts), "rows": rows})


if __name__ == "__main__":
    main()
