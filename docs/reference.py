"""The Python reference: what each name that users import takes, gives and refuses, from signatures and docstrings.

Public is what a room lists in its `__all__`, and what the pages and tutorials of this documentation import. A name is
described once, where it is met first; every other mention leads there.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from docstrings import as_markdown, safe

DOCS = Path(__file__).parent
ROOT = DOCS.parent
BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
HEREDOC = re.compile(r"^python - <<'(\w+)'\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
SPOKEN = re.compile(r"`(lessen(?:\.\w+)+)\.(\w+)`")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
WIDE = 96


class Name(NamedTuple):
    """A public name and the module that it is imported from."""

    module: str
    name: str

    @property
    def full(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def value(self) -> Any:
        return getattr(importlib.import_module(self.module), self.name)

    @property
    def is_module(self) -> bool:
        """Whether it is a file or a room, as in `from lessen.stored import checks`."""
        module = importlib.import_module(self.module)
        return isinstance(getattr(module, self.name, module), ModuleType)

    @property
    def page(self) -> str:
        """The page of its room, such as `api/train.md`."""
        return f"api/{room_of(self.module)}.md"


def room_of(module: str) -> str:
    """`train` of `lessen.train.fit`; the package itself is `lessen`."""
    return module.split(".")[1] if "." in module else "lessen"


def imported() -> set[tuple[str, str]]:
    """Return (module, name) of everything that README, pages and tutorials import from lessen or call by full name."""
    pages = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
    codes = [code for page in pages for code in BLOCK.findall(page.read_text())]
    codes += [code for page in pages for _, code in HEREDOC.findall(page.read_text())]
    codes += [path.read_text() for path in sorted((DOCS / "tutorials").glob("*.py"))]
    found = set()
    for node in (node for code in codes for node in ast.walk(ast.parse(code))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lessen":
            found |= {(node.module or "", alias.name) for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lessen":
            found.add(("lessen", node.attr))
    return found | {pair for page in pages for pair in SPOKEN.findall(page.read_text())}


@cache
def public() -> list[Name]:
    """Return all public names: the package's, then room by room as `__all__` lists them, then what pages import."""
    rooms = [ROOT / "src" / "lessen", *sorted(path.parent for path in (ROOT / "src" / "lessen").glob("*/__init__.py"))]
    modules = [".".join(room.relative_to(ROOT / "src").parts) for room in rooms]
    names = [
        Name(module, name) for module in modules for name in getattr(importlib.import_module(module), "__all__", ())
    ]
    names += [Name(*pair) for pair in sorted(imported())]
    return [name for name in dict.fromkeys(names) if not name.is_module]


@cache
def homes() -> dict[str, Name]:
    """Return, by full name, where each public name is described: the first that is the same object."""
    first: dict[int, Name] = {}
    return {name.full: first.setdefault(id(name.value), name) for name in public()}


def pages() -> dict[str, str]:
    """Return the pages of the reference by path; `api.md` lists every name with its line."""
    return {"api.md": index(), **{page: room_page(page) for page in room_pages()}}


def room_pages() -> list[str]:
    """The package's page, then those of the rooms by name."""
    first, *others = dict.fromkeys(name.page for name in public())
    return [first, *sorted(others)]


def index() -> str:
    """All public names, each with the first line of what it says."""
    lines = [
        "# Python reference",
        "",
        "Every name that you import, room by room; generated from this version's code.",
        "",
    ]
    for page in room_pages():
        own = [name for name in public() if name.page == page]
        lines += [f"## [{room_title(page)}]({page})", "", "| import | what it is |", "|---|---|"]
        for name in own:
            home = homes()[name.full]
            said = summary(home).replace("|", "\\|")
            lines.append(f"| [`{name.full.removeprefix('lessen.')}`]({home.page}#{home.full}) | {said} |")
        lines.append("")
    return "\n".join(lines)


def room_title(page: str) -> str:
    """`lessen.train` of `api/train.md`."""
    room = Path(page).stem
    return room if room == "lessen" else f"lessen.{room}"


def room_page(page: str) -> str:
    """The names of one room, under the modules that they are imported from."""
    own = [name for name in public() if name.page == page]
    lines = [f"# {room_title(page)}", ""]
    for module in dict.fromkeys(name.module for name in own):
        lines += [
            *([] if module == room_title(page) else [f"## {module}", ""]),
            linked(doc_of_module(module), page),
            "",
        ]
        for name in own:
            if name.module == module:
                lines += section(name, page)
    return "\n".join(lines)


def doc_of_module(module: str) -> str:
    return as_markdown(inspect.getdoc(importlib.import_module(module)) or "")


def summary(name: Name) -> str:
    """The first sentence or line of what a name says; of a constant, its type."""
    value = name.value
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return f"one `{type(value).__name__}`"
    return as_markdown((inspect.getdoc(value) or "").split("\n\n")[0].split("\n")[0])


def section(name: Name, page: str) -> list[str]:
    """Heading, import line, signature, words and source of one name, or the way to where it is described."""
    home = homes()[name.full]
    if home != name:
        return [f"### {name.name} {{ #{name.full} }}", "", f"The same as [`{home.full}`]({beside(home, page)}).", ""]
    lines = [f"### {name.name} {{ #{name.full} }}", ""]
    code = [f"from {name.module} import {name.name}"]
    value = name.value
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        shown = repr(value)
        said = f"`{shown}`" if len(shown) < 400 and " at 0x" not in shown else f"One `{type(value).__name__}`."
        kind = type(value) if type(value).__module__.startswith("lessen.") else None
        return [
            *lines,
            *fenced("python", code[0]),
            said,
            "",
            as_markdown(inspect.getdoc(kind) or "") if kind else "",
            "",
        ]
    tree, source = parsed(value)
    if isinstance(tree, ast.ClassDef):
        lines += fenced("python", "\n".join([*code, *construct(name.name, tree)]))
        lines += [*based(value, page), linked(as_markdown(inspect.getdoc(value) or ""), page), ""]
        lines += fields(tree, page)
        for part in tree.body:
            if isinstance(part, FUNCTIONS) and not part.name.startswith("_") and ast.get_docstring(part):
                lines += method(part, name.full, page)
    else:
        lines += fenced("python", "\n".join([*code, call(name.name, tree)]) if tree else code[0])
        lines += [linked(as_markdown(inspect.getdoc(value) or ""), page), ""]
    return [*lines, *source]


def parsed(value: Any) -> tuple[Any, list[str]]:
    """Return the syntax tree of a class or function, and its source as a block that opens."""
    value = inspect.unwrap(value)
    try:
        text, first = inspect.getsourcelines(value)
        place = Path(inspect.getfile(value)).resolve().relative_to(ROOT)
    except (TypeError, OSError, ValueError):
        return None, []
    text = textwrap.dedent("".join(text))
    body = textwrap.indent("\n".join(["```python", text.rstrip().replace("```", "` ` `"), "```"]), "    ")
    return ast.parse(text).body[0], [f'??? quote "Source: {place}, line {first}"', "", body, ""]


def call(name: str, tree: Any) -> str:
    """A signature as it is written, on as many lines as it needs; without `self`."""
    parts = parameters(tree.args)
    gives = f" -> {ast.unparse(tree.returns)}" if tree.returns else ""
    line = f"{name}({', '.join(parts)}){gives}"
    if len(line) <= WIDE:
        return line
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){gives}"])


def parameters(given: ast.arguments) -> list[str]:
    """Each parameter with its type and default, and the signs that stand between them."""
    by_place = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(by_place) - len(given.defaults)) + list(given.defaults)
    parts = [parameter(arg, default) for arg, default in zip(by_place, defaults, strict=True)]
    if given.posonlyargs:
        parts.insert(len(given.posonlyargs), "/")
    if by_place and by_place[0].arg in ("self", "cls"):
        del parts[0]
    if given.vararg:
        parts.append(f"*{parameter(given.vararg)}")
    elif given.kwonlyargs:
        parts.append("*")
    parts += [parameter(*pair) for pair in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return [*parts, f"**{parameter(given.kwarg)}"] if given.kwarg else parts


def parameter(given: ast.arg, default: ast.expr | None = None) -> str:
    said = f"{given.arg}: {ast.unparse(given.annotation)}" if given.annotation else given.arg
    return said if default is None else f"{said} = {ast.unparse(default)}"


def construct(name: str, tree: ast.ClassDef) -> list[str]:
    """How an instance is made, where the class says so itself."""
    made = [part for part in tree.body if isinstance(part, FUNCTIONS) and part.name == "__init__"]
    return [call(name, made[0]).replace(" -> None", "")] if made else []


def based(value: type, page: str) -> list[str]:
    """The classes of ours that it extends, whose methods it has too."""
    known = {home.value: home for home in homes().values() if inspect.isclass(home.value)}
    bases = [f"[`{base.__name__}`]({beside(known[base], page)})" for base in value.__bases__ if base in known]
    return [f"Extends {', '.join(bases)}.", ""] if bases else []


def fields(tree: ast.ClassDef, page: str) -> list[str]:
    """The annotated attributes of a class: type, default, and the words below each."""
    lines = []
    for part, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not isinstance(part, ast.AnnAssign) or not isinstance(part.target, ast.Name) or part.target.id[0] == "_":
            continue
        said = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            said = ": " + " ".join(as_markdown(inspect.cleandoc(after.value.value)).split())
        value, described = declared(part.value)
        said = said or described
        default = f" = {value}" if value and len(value) < WIDE else ""
        lines.append(f"- `{part.target.id}: {ast.unparse(part.annotation)}{default}`{linked(said, page)}")
    return ["**Attributes**", "", *lines, ""] if lines else []


def declared(value: ast.expr | None) -> tuple[str, str]:
    """Return the default of a field and its words; those of a knob stand inside `Field(...)`."""
    if not (isinstance(value, ast.Call) and ast.unparse(value.func) == "Field"):
        return (ast.unparse(value) if value else ""), ""
    words = [
        part.value for part in value.keywords if part.arg == "description" and isinstance(part.value, ast.Constant)
    ]
    return ", ".join(map(ast.unparse, value.args)), f": {safe(words[0].value)}" if words else ""


def method(part: Any, full: str, page: str) -> list[str]:
    """One public method: how it is called, and what it says."""
    marks = {ast.unparse(mark) for mark in part.decorator_list}
    is_value = marks & {"property", "cached_property"} and part.returns
    shown = f"{part.name}: {ast.unparse(part.returns)}" if is_value else call(part.name, part)
    heading = f"#### {part.name} {{ #{full}.{part.name} }}"
    return [heading, "", *fenced("python", shown), linked(as_markdown(ast.get_docstring(part) or ""), page), ""]


def fenced(language: str, text: str) -> list[str]:
    return [f"```{language}", text, "```", ""]


def beside(home: Name, page: str) -> str:
    """The link from one page of the reference to a name."""
    return f"#{home.full}" if home.page == page else f"{Path(home.page).name}#{home.full}"


def linked(text: str, page: str) -> str:
    """Turn the names of others in backquotes into links, outside blocks of code."""
    known = {home.name: home for home in reversed(list(homes().values())) if home.name[0].isupper()}
    known |= {home.full: home for home in homes().values()}

    def link(found: re.Match[str]) -> str:
        home = known.get(found[1])
        return f"[`{found[1]}`]({beside(home, page)})" if home else found[0]

    parts = re.split(r"(^```.*?^```)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else re.sub(r"`([\w.]+)`", link, part) for part in parts)
