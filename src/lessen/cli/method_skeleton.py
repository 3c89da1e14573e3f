"""What `lessen new-method` writes: a method that works and passes the contract, until you put your rule in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from string import Template

from lessen import files
from lessen.errors import ConfigError, OutputError, nearest
from lessen.methods import builtin_methods, families, plugin_names

METHOD = Template('''"""$title: say in one line what gets smaller, and how."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import nn

from lessen.method import Card, Context
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import $imports
from lessen.stored.$stored_file import $stored_class
from lessen.task import Task


class $cls(ModuleMethod):
    """Name the paper and its arXiv id here, and what differs from it.

    The rule of this skeleton: every eligible $what is stored as $stored_class. Replace it by yours; keep
    `eligible` (it honours `only` and `skip`, names what is left alone and why; nothing matched is an error).
    """

    card = Card(
        name="$name",
        family="$family",
        summary="Store $what in $bits bits.",
        acts_on=$kinds,
        source="the paper's title and arXiv id",
        claims=frozenset({"bytes"}),
    )
    $knob: int = Field($default, ge=1, le=10**9, description="smaller ones stay as they are")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:  # noqa: ARG002
        """Replace each eligible module. Raises NothingMatchedError."""
        for site in self.eligible(model, self.card.module_types, context, self._reject):
            model = replace(model, site, $stored_class.from_dense(site.module$arguments))
        return model

    def _reject(self, module: Any) -> str | None:
        if module.weight.element_size() < 4:
            return f"holds {module.weight.dtype} already"
        $reject
''')
ANY = Template('''"""$title: say in one line what costs less, and how."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from lessen.method import Card, Context, Method
from lessen.task import Task


class $cls(Method):
    """Name the paper and its arXiv id here, and what differs from it.

    The rule of this skeleton changes nothing. Override `prepare` to change what is trained on, `apply` to change the
    model; what either learned goes into `context.findings`, and randomness comes from `context.generator`.
    """

    card = Card(
        name="$name",
        family="$family",
        summary="Say what it does.",
        acts_on=("$what",),
        source="the paper's title and arXiv id",
        claims=frozenset(),
    )
    strength: float = Field(0.5, ge=0, le=1, description="how strongly the rule acts")

    def prepare(self, task: Task, context: Context) -> Task:  # noqa: ARG002
        """Return the task as later steps train on it."""
        return task

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:  # noqa: ARG002
        """Return the model that this step makes."""
        context.findings["strength"] = self.strength
        return model
''')
ANY_TEST = Template('''"""The contract, and what only this method promises."""

from __future__ import annotations

from lessen.recipe import Recipe
from lessen.testing import check_method, contract_case
from $module import $cls


def test_contract():
    check_method($cls())


def test_what_it_learned_is_in_the_ledger():
    case = contract_case($cls())
    _, ledger = Recipe([$cls(strength=0.25)]).apply(case.model, case.task)
    assert ledger[0].findings == {"strength": 0.25}
''')
WORDS = {"codecs": "pictures", "retrieval": "vectors", "tokens": "tokens"}
"""What methods of a family act on; the others act on data."""
LINEAR = {
    "imports": "replace",
    "stored_file": "linears.int8_linear",
    "stored_class": "Int8Linear",
    "what": "linear layers",
    "bits": "8",
    "kinds": "(nn.Linear,)",
    "knob": "min_weights",
    "default": "1024",
    "arguments": "",
    "reject": "few = module.weight.numel() < self.min_weights\n"
    '        return f"has fewer weights than min_weights {self.min_weights}" if few else None',
}
TABLES = {
    "imports": "TABLES, replace, too_small",
    "stored_file": "tables.half_embedding",
    "stored_class": "HalfEmbedding",
    "what": "embedding tables",
    "bits": "16",
    "kinds": "TABLES",
    "knob": "min_rows",
    "default": "1000",
    "arguments": ', "bf16"',
    "reject": "return too_small(module, self.min_rows)",
}
TEST = Template('''"""The contract, and what only this method promises."""

from __future__ import annotations

import torch

from lessen.recipe import Recipe
from lessen.methods.sites import state_bytes
from lessen.testing import check_method
from lessen.testing.toys import TableTask
from $module import $cls


def test_contract():
    check_method($cls(), task=TableTask())


def test_halves_the_bytes_and_stays_close():
    task = TableTask()
    torch.manual_seed(0)
    model = task.build().eval()
    small, _ = Recipe([$cls()]).apply(model, task)
    batch = task.example_batch()
    assert state_bytes(small) < $share * state_bytes(model)
    torch.testing.assert_close(task.predict(small, batch), task.predict(model, batch), atol=0.05, rtol=0.05)
''')


@dataclass(frozen=True)
class Made:
    """The files that were written, and the entry point that a package of one's own needs."""

    method: Path
    test: Path
    entry_point: str


def write(name: str, family: str, folder: Path) -> Made:
    """Write a method and its test, into a checkout of lessen or beside each other in another folder.

    Raises:
        ConfigError: a name that is no slug or is taken, or an unknown family.
        OutputError: a file is there already, or cannot be written.
    """
    _check_names(name, family)
    stem = name.replace("-", "_")
    cls = "".join(word.capitalize() for word in name.split("-"))
    inside = (folder / "src" / "lessen" / "methods").is_dir()
    method = folder / "src" / "lessen" / "methods" / family / f"{stem}.py" if inside else folder / f"{stem}.py"
    test = folder / "tests" / "methods" / family / f"test_{stem}.py" if inside else folder / f"test_{stem}.py"
    for path in (method, test):
        if path.exists():
            raise OutputError(f"{path} exists already; choose another name")
    module = f"lessen.methods.{family}.{stem}" if inside else stem
    told = {"title": name, "cls": cls, "name": name, "family": family, "module": module}
    files.atomic_write(method, _method(family, told))
    files.atomic_write(test, _test(family, told))
    return Made(method, test, "" if inside else f'{name} = "{module}:{cls}"')


def _method(family: str, told: dict[str, str]) -> str:
    if family in ("embeddings", "weights"):
        return METHOD.substitute(TABLES if family == "embeddings" else LINEAR, **told)
    return ANY.substitute(told, what=WORDS.get(family, "data"))


def _test(family: str, told: dict[str, str]) -> str:
    if family in ("embeddings", "weights"):
        return TEST.substitute(told, share="0.75" if family == "embeddings" else "0.99")
    return ANY_TEST.substitute(told)


def _check_names(name: str, family: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ConfigError(f"{name!r} is no method name; use lower-case words joined by '-', such as emb-round")
    if family not in families():
        raise ConfigError(f"no family is called {family!r}; {nearest(family, families())}")
    if name in builtin_methods() or name in plugin_names():
        raise ConfigError(f"a method called {name!r} exists; see: lessen methods {name}")
