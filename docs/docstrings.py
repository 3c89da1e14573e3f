"""Docstrings as Markdown: prose with its code, then what is taken, given and refused as lists."""

from __future__ import annotations

import ast
import re

SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Knobs")
HEAD = re.compile(rf"^({'|'.join(SECTIONS)}):$")
ITEM = re.compile(r"^([\w.*, ]+?)(?: \(([^)]*)\))?: (.*)$")
LIST = re.compile(r"^(?:[-*]|\d+\.) ")
ALIGNED = re.compile(r"[^\s.] {2,}\S")
CODE = re.compile(r"(`[^`]*`)")
TITLES = {"Args": "Arguments"}


def as_markdown(text: str) -> str:
    """Return a cleaned docstring as Markdown. What is indented in it stays as it stands, in a block of its own."""
    lines: list[str] = []
    for paragraph in re.split(r"\n[ \t]*\n", text.strip("\n")):
        rows = paragraph.splitlines()
        at = next((at for at, row in enumerate(rows) if HEAD.match(row)), None)
        if at is None:
            lines += [*prose(rows), ""]
            continue
        lines += [*prose(rows[:at]), ""] if at else []
        lines += listed(rows[at:])
    return "\n".join(lines).strip("\n")


def prose(rows: list[str]) -> list[str]:
    """One paragraph: words, a list, or what is laid out by hand."""
    first = next((at for at, row in enumerate(rows) if LIST.match(row)), None)
    if first is not None:
        return [*([*prose(rows[:first]), ""] if first else []), *map(safe, rows[first:])]
    if is_python("\n".join(rows)):
        return ["```python", *rows, "```"]
    if any(row[0].isspace() or ALIGNED.search(row) for row in rows if row):
        return ["```text", *rows, "```"]
    return [safe(row) for row in rows]


def is_python(text: str) -> bool:
    """Tell whether a paragraph is code, which no English sentence is: it parses, and calls or assigns something."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return False
    return any(isinstance(node, (ast.Call, ast.Assign)) for node in ast.walk(tree))


def listed(rows: list[str]) -> list[str]:
    """Sections such as `Args:`, each as a list of its items."""
    lines: list[str] = []
    for row in rows:
        head = HEAD.match(row)
        if head:
            lines += ["", f"**{TITLES.get(head[1], head[1])}**", ""]
            continue
        depth = len(row) - len(row.lstrip())
        item = ITEM.match(row.strip()) if depth == 4 else None
        if item:
            kind = f" ({safe(item[2])})" if item[2] else ""
            names = ", ".join(f"`{name.strip()}`" for name in item[1].split(","))
            lines.append(f"- {names}{kind}: {safe(item[3])}")
        elif depth == 4:
            lines.append(f"- {safe(row.strip())}")
        else:
            lines.append(f"    {safe(row.strip())}")
    return [*lines, ""]


def safe(text: str) -> str:
    """Words whose signs Markdown or HTML would take for its own, outside backquotes; ** stays what it is."""
    parts = CODE.split(text)
    for at in range(0, len(parts), 2):
        plain = parts[at].replace("<", "&lt;")
        parts[at] = re.sub(r"(?<![*\\])\*(?![*\s])", r"\\*", plain) if not LIST.match(text) else plain
    return "".join(parts)
