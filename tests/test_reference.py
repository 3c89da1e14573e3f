"""The Python reference: every name that pages import stands in it, and nothing that its docstring says is lost."""

from __future__ import annotations

import html
import inspect
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
EXTENSIONS = ["admonition", "attr_list", "tables", "toc", "pymdownx.details", "pymdownx.superfences"]

MODULES = {"lessen.stored.checks", "lessen.train.mup"}
"""What pages import as a whole."""


def module(name: str):
    sys.path.insert(0, str(DOCS))  # as mkdocs does for its hooks
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(DOCS))


@pytest.fixture(scope="module")
def reference():
    return module("reference")


@pytest.fixture(scope="module")
def pages(reference):
    return reference.pages()


def described(reference):
    """Yield every public function, class and method that is described, with its name."""
    for name in reference.homes().values():
        value = name.value
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        yield name.full, value
        for own, part in vars(value).items() if inspect.isclass(value) else ():
            part = getattr(part, "__func__", part)
            made_here = getattr(part, "__qualname__", "") == f"{value.__qualname__}.{own}"
            if made_here and inspect.isfunction(part) and not own.startswith("_") and inspect.getdoc(part):
                yield f"{name.full}.{own}", part


def test_every_name_that_a_page_imports_stands_in_it(pages):
    """Found by their text here, not by the syntax trees that the reference itself reads."""
    texts = [path.read_text() for path in (ROOT / "README.md", *DOCS.glob("*.md"), *DOCS.glob("tutorials/*.py"))]
    shown = "\n".join(pages.values())
    found = set()
    for text in texts:
        for home, names in re.findall(r"^from (lessen[\w.]*) import (\([^)]*\)|[^#\n]*)", text, re.MULTILINE):
            found |= {
                f"{home}.{name.split(' as ')[0].strip()}" for name in names.strip("()").split(",") if name.strip()
            }
    assert len(found) > 60
    assert {name for name in found if f"{{ #{name} }}" not in shown} <= MODULES


def test_every_name_of_a_room_stands_in_it(reference, pages):
    for room in ("lessen", "lessen.metrics", "lessen.checkpoints", "lessen.decoding", "lessen.study"):
        for name in __import__(room, fromlist=["x"]).__all__:
            assert f"{{ #{room}.{name} }}" in pages[f"api/{reference.room_of(room)}.md"]


def test_links_lead_to_anchors(pages):
    anchors = {page: set(re.findall(r"\{ #([\w.]+) \}", text)) for page, text in pages.items()}
    for page, text in pages.items():
        for target, anchor in re.findall(r"\]\((\S*?)#(lessen[\w.]+)\)", re.sub(r"^    .*$", "", text, flags=re.M)):
            there = page if not target else target if page == "api.md" else f"api/{target}"
            assert anchor in anchors[there], f"{page} links to {target}#{anchor}"


def test_no_word_of_a_docstring_is_lost(reference, pages):
    markdown = pytest.importorskip("markdown", reason="the [docs] extra is not installed")

    def words(text):
        return re.findall(r"[^\W_]+", text)

    seen = {}
    for page, text in pages.items():
        made = re.sub(r"<details.*?</details>", "", markdown.markdown(text, extensions=EXTENSIONS), flags=re.DOTALL)
        seen[page] = " ".join(words(html.unescape(re.sub(r"<[^>]+>", "", made))))
    heads = {"Args": "Arguments"}
    for full, value in described(reference):
        page = next(name.page for name in reference.public() if full == name.full or full.startswith(f"{name.full}."))
        said = " ".join(heads.get(word, word) for word in words(inspect.getdoc(value)))
        assert said in seen[page], full


def test_docstrings_say_what_they_are_asked_for(reference):
    """Words for everything, arguments that exist, and the shape of a tensor that is taken."""
    for full, value in described(reference):
        text = inspect.getdoc(value)
        assert text, full
        if not inspect.isfunction(value):
            continue
        taken = inspect.signature(value).parameters
        args = re.search(r"^Args:\n((?:    .*\n?)+)", text, re.MULTILINE)
        for names in re.findall(r"^    (\w[\w*, ]*?)(?: \([^)]*\))?: ", args[1] if args else "", re.MULTILINE):
            assert {name.strip().lstrip("*") for name in names.split(",")} <= set(taken), f"{full}: {names}"
        if any(str(each.annotation).startswith(("Tensor", "np.ndarray")) for each in taken.values()):
            assert re.search(r"\[[^\]]*\]|scalar|any shape|weight", text), f"{full} takes a tensor of unsaid shape"


def test_signatures_are_those_of_the_code(pages):
    assert "    accumulate: Positive = 1`" not in pages["api/train.md"]  # described once, where it is met first
    assert "- `accumulate: Positive = 1`: Batches whose gradients" in pages["api/lessen.md"]
    assert "    hooks: Sequence[Hook] = (),\n" in pages["api/train.md"]
    assert "def fit(" in pages["api/train.md"]
    assert "Source: src/lessen/train/fit.py, line " in pages["api/train.md"]


DOCSTRING = '''Return the sum of a * b and c<d> over rows x [n, d].

small = shrink(model, bits=4)
small.save("out")

left   right
  one    two

- a list
- of two

Args:
    bits: 2, 4 or 8;
        fewer are refused.
    x, y: float32 [n, d], in *any* order.

Raises:
    ConfigError: another number.
'''  # fmt: skip


def test_a_docstring_as_markdown():
    made = module("docstrings").as_markdown(DOCSTRING.strip())
    assert made.startswith("Return the sum of a * b and c&lt;d> over rows x [n, d].\n")
    assert '```python\nsmall = shrink(model, bits=4)\nsmall.save("out")\n```' in made
    assert "```text\nleft   right\n  one    two\n```" in made
    assert "\n- a list\n- of two\n" in made
    assert "**Arguments**\n\n- `bits`: 2, 4 or 8;\n    fewer are refused.\n- `x`, `y`: float32 [n, d]" in made
    assert made.endswith("**Raises**\n\n- `ConfigError`: another number.")
