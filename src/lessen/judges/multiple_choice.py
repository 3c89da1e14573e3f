"""The suite `multiple-choice`: knowledge in any language, question by question, and whether only the form was lost.

Three types of question, as CFinBench has them (Nie et al., arXiv 2407.02301): one letter, several letters, correct or
wrong. Single letters may be scored by likelihood, so that a model that no longer follows the form is told from one that
no longer knows; the other types are written. Compression loses long-tail and non-English knowledge first.

Data are yours: CFinBench's folders or tables with the columns Question, A to D, Answer (`data/questions.py`). The
wording of the prompts is ours, after the paper's description; give `prompt` for another language.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from lessen import files
from lessen.data.questions import KINDS, LETTERS, NO, WEIGHTS, YES, Question, parse, parse_robust, read_questions, score
from lessen.judges.reading import evaluated
from lessen.judges.suite import Section, Suite, SuiteOptions, share, table
from lessen.metrics import Array, Floats, MeanMetric, Metric, Outcomes
from lessen.metrics.exact import exact_interval, net_loss_interval, paired_p
from lessen.task import Split, Task
from lessen.train.device import device_of

PROMPTS = {
    "single": "下面是一道关于{subject}的单选题。请在“答案：”之后只写出正确选项的字母，例如“B”。\n{text}\n答案：",
    "multi": "下面是一道关于{subject}的多选题。请在“答案：”之后写出所有正确选项的字母，例如“AD”。\n{text}\n答案：",
    "judgment": "请判断下面这句关于{subject}的话。请在“答案：”之后只写“正确”或“错误”。\n{text}\n答案：",
}
COLUMNS = ("right", "points", "strict", "robust", "parsed", "answer", "kind", "subject")


class Points(MeanMetric):
    """Mean points, a part of several right letters counting half; an answer that cannot be read counts nothing."""

    name, title, reads = "choice-points", "points", ("points", "parsed")

    def each(self, outcomes: Outcomes) -> Floats:
        """Return the points of each question."""
        return outcomes["points"].astype(np.float64) * outcomes["parsed"].astype(np.float64)


class ChoiceOptions(SuiteOptions):
    """What a user must and may say of the questions."""

    data: str = Field(description="folder of questions, in CFinBench's form or of .csv tables")
    split: str = Field("val", description="of CFinBench's folders")
    most: int | None = Field(20, ge=1, description="questions a file; None: all")
    mode: str = Field("likelihood", pattern="^(likelihood|written)$", description="how single letters are answered")
    tokens: int = Field(16, ge=1, le=1000, description="written for an answer at most")
    prompt: str | None = Field(None, description="in place of the Chinese ones; {subject} and {text} are filled in")


class MultipleChoice(Suite):
    """Questions with letters for answers, scored as CFinBench does and strictly."""

    name, question = "multiple-choice", "Does it still know, and does it still answer in the form it is asked for?"
    metrics: Mapping[str, Metric] = {"points": Points()}
    columns = COLUMNS
    Options = ChoiceOptions

    def bind(self, task: Task | None) -> None:
        """Take the task, and read the questions. Raises DataError: there are none."""
        super().bind(task)
        self._questions = read_questions(self.options.data, self.options.split, self.options.most)
        self._subjects = sorted({each.subject for each in self._questions})

    def unable(self, model: nn.Module) -> str:
        """Say whether the model can neither write nor be read."""
        if not hasattr(self.task, "tokenizer"):
            return f"it needs a language model with its tokenizer; task {self.task.name!r} has none"
        writes = self.options.mode == "written" or any(each.kind != "single" for each in self._questions)
        return (
            f"{type(model).__name__} cannot write: it has no generate"
            if writes and not hasattr(model, "generate")
            else ""
        )

    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:  # noqa: ARG002 - the data say which
        """Return, for each question, whether the answer is right, its points, and the answer as a number."""
        self.check_able(model)
        rows = []
        with evaluated(model), torch.no_grad():
            for each in self._questions:
                by_letter = each.kind == "single" and self.options.mode == "likelihood"
                written = self._likeliest(model, each) if by_letter else self._written(model, each)
                rows.append(judged(each, written, self._subjects))
        columns = {name: np.asarray(values) for name, values in zip(COLUMNS, zip(*rows, strict=True), strict=True)}
        return Outcomes(columns, columns["subject"], given=frozenset({"kind", "subject"}))

    def fingerprint(self) -> str:
        """Return the digest of the questions, their answers and how they are asked."""
        asked = [(each.kind, each.text, each.answer, each.subject) for each in self._questions]
        return files.digest(files.canonical([asked, self.options.mode, self.options.prompt or PROMPTS]))

    def _prompt(self, each: Question) -> str:
        wording = self.options.prompt or PROMPTS[each.kind]
        return str(wording.replace("{subject}", each.subject.replace("_", " ")).replace("{text}", each.text))

    def _ids(self, text: str) -> Tensor:
        return torch.tensor([self.task.tokenizer(text)["input_ids"]], dtype=torch.int64)  # type: ignore[attr-defined]

    def _likeliest(self, model: Any, each: Question) -> str:
        """Return the letter whose text after the prompt is the likeliest."""
        offered = re.findall(rf"^([{LETTERS}])\s*[.．、:：)）]", each.text, flags=re.MULTILINE) or list(LETTERS[:4])
        prompt, best = self._ids(self._prompt(each)), ("", -np.inf)
        known: dict[int, Tensor] = {}
        for letter in dict.fromkeys(offered):
            whole = self._ids(self._prompt(each) + letter)
            start = _shared(prompt[0], whole[0])
            given = whole[:, :-1]
            if given.shape[1] not in known or whole.shape[1] - start > 1:
                output = model(input_ids=given.to(device_of(model)))
                logits = getattr(output, "logits", output)
                known[given.shape[1]] = torch.log_softmax(logits[0, start - 1 :].float(), dim=-1).cpu()
            chances = known[given.shape[1]]
            value = float(chances[range(whole.shape[1] - start), whole[0, start:]].sum())
            best = max(best, (letter, value), key=lambda pair: pair[1])
        return best[0]

    def _written(self, model: Any, each: Question) -> str:
        ids = self._ids(self._prompt(each)).to(device_of(model))
        tokenizer = self.task.tokenizer  # type: ignore[attr-defined]
        made = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=self.options.tokens, do_sample=False,
            pad_token_id=getattr(tokenizer, "pad_token_id", None) or getattr(tokenizer, "eos_token_id", None),
        )  # fmt: skip
        return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))

    def compare(self, before: Outcomes, after: Outcomes) -> Section:
        """Return points and flips by type; caught is a net loss, in all or in one subject, or a lost form."""
        before.check_same_units(after)
        rows, caught = [], []
        figures: dict[str, Any] = {}
        for number, kind in [(-1, "all"), *enumerate(KINDS)]:
            members = np.ones(len(before), dtype=bool) if number < 0 else before["kind"] == number
            if not members.any():
                continue
            row, figure = _kind(kind, before, after, members)
            rows.append(row)
            figures[kind] = figure
            if kind == "all" and figure["p"] < 0.05 and figure["lost"] > figure["gained"]:
                caught.append(f"more answers are lost than gained: {row[4]}, p = {figure['p']:.2g}")
            if kind == "all" and figure["unread p"] < 0.05 and figure["unread"][1] > figure["unread"][0]:
                caught.append(f"the form is lost: {row[5]} of the answers cannot be read")
        worst, holm = self._subjects_of(before, after)
        caught += holm
        letters = [_commonest(each) for each in (before, after)]
        figures["commonest answer"] = [list(pair) for pair in letters]
        lines = (
            f"The commonest answer is {letters[0][0]} ({share(letters[0][1])}) before, {letters[1][0]} "
            f"({share(letters[1][1])}) after: one letter for all keeps half points of some questions.",
            f"Score of the released evaluator, weighted by type: {self._official(before):.2f} before, "
            f"{self._official(after):.2f} after.",
        )  # fmt: skip
        columns = (
            "type",
            "questions",
            "points, uncompressed",
            "compact",
            "net loss of right answers [95 %]",
            "not read: before, after",
            "strict",
            "robust",
        )
        tables = (
            table("", columns, rows),
            table("Subjects that lose most (Holm over all)", ("subject", "lost", "gained", "p"), worst),
        )
        return Section(self.name, self.question, tuple(caught), lines, tables, figures)

    def _subjects_of(self, before: Outcomes, after: Outcomes) -> tuple[list[tuple[str, ...]], list[str]]:
        found = []
        for at, name in enumerate(self._subjects):
            members = before["subject"] == at
            lost, gained = _lost_gained(before, after, members)
            found.append((paired_p(lost, gained), lost, gained, name))
        found.sort(key=lambda each: (each[0], each[2] - each[1]))
        caught, going = [], True
        for rank, (p, lost, gained, name) in enumerate(found):
            going = going and p * (len(found) - rank) < 0.05
            if going and lost > gained and len(found) > 1:
                caught.append(
                    f"{name} loses {lost} answers, gains {gained}: p = {p * (len(found) - rank):.2g} over all subjects"
                )
        worst = sorted(found, key=lambda each: each[2] - each[1])[:5]
        return [(name, f"{lost}", f"{gained}", f"{p:.3g}") for p, lost, gained, name in worst], caught

    def _official(self, outcomes: Outcomes) -> float:
        """Return the mean over categories of weighted means over files, x 100, half points for nothing included."""
        by_file: dict[tuple[str, str, str], list[float]] = {}
        for each, points in zip(self._questions, outcomes["points"], strict=True):
            by_file.setdefault((each.category, each.kind, each.subject), []).append(float(points))
        categories: dict[str, list[tuple[float, float]]] = {}
        for (category, kind, _), values in by_file.items():
            categories.setdefault(category, []).append((WEIGHTS[kind], float(np.mean(values))))
        return 100.0 * float(np.mean([sum(w * v for w, v in c) / sum(w for w, _ in c) for c in categories.values()]))


def judged(each: Question, written: str, subjects: list[str]) -> tuple[float | int | bool, ...]:
    """Return the columns of one answer, in the order of `COLUMNS`."""
    parsed, robust = parse(each.kind, written), parse_robust(each.kind, written)
    points = score(each.kind, parsed, each.answer)
    wanted = "".join(sorted(set(each.answer))) if each.kind != "judgment" else each.answer
    return (
        parsed == each.answer, points, score(each.kind, parsed, each.answer, strict=True), robust == wanted,
        parsed != "", _number(parsed), KINDS.index(each.kind), subjects.index(each.subject),
    )  # fmt: skip


def _number(parsed: str) -> int:
    """Return an answer as a number: letters as bits, the words for correct and wrong as 64 and 65, none as 0."""
    if parsed in (YES, NO):
        return 64 + (parsed == NO)
    return sum(1 << LETTERS.index(letter) for letter in set(parsed) if letter in LETTERS)


def _spelled(number: int) -> str:
    if number >= 64:
        return NO if number == 65 else YES
    return "".join(letter for at, letter in enumerate(LETTERS) if number >> at & 1) or "none"


def _commonest(outcomes: Outcomes) -> tuple[str, float]:
    kinds, counts = np.unique(outcomes["answer"], return_counts=True)
    return _spelled(int(kinds[counts.argmax()])), float(counts.max() / len(outcomes))


def _shared(one: Tensor, other: Tensor) -> int:
    """Return how many tokens two texts share at their start."""
    size = min(len(one), len(other) - 1)
    apart = (one[:size] != other[:size]).nonzero()
    return int(apart[0]) if len(apart) else size


def _lost_gained(before: Outcomes, after: Outcomes, members: Array) -> tuple[int, int]:
    one, two = before["right"][members].astype(bool), after["right"][members].astype(bool)
    return int((one & ~two).sum()), int((~one & two).sum())


def _kind(kind: str, before: Outcomes, after: Outcomes, members: Array) -> tuple[tuple[str, ...], dict[str, Any]]:
    n, points = int(members.sum()), [float(Points().each(each)[members].mean()) for each in (before, after)]
    lost, gained = _lost_gained(before, after, members)
    ends = [float(end) for end in net_loss_interval(lost, gained, n)]
    read = [each["parsed"][members].astype(bool) for each in (before, after)]
    unread = [int((~each).sum()) for each in read]
    strict, robust = ([float(each[name][members].mean()) for each in (before, after)] for name in ("strict", "robust"))
    forms = [share(count / n, *exact_interval(count, n)) for count in unread]
    row = (
        kind, f"{n}", f"{100 * points[0]:.1f}", f"{100 * points[1]:.1f}", share((lost - gained) / n, *ends),
        " to ".join(forms), *(f"{100 * one:.1f} to {100 * two:.1f}" for one, two in (strict, robust)),
    )  # fmt: skip
    p = paired_p(int((read[0] & ~read[1]).sum()), int((~read[0] & read[1]).sum()))
    figure = {"questions": n, "points": points, "lost": lost, "gained": gained, "p": paired_p(lost, gained),
              "low": ends[0], "high": ends[1], "unread": unread, "unread p": p, "strict": strict,
              "robust": robust}  # fmt: skip
    return row, figure
