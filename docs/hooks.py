"""Pages that are generated at build time: methods, errors, the Python reference, and the tutorials (from scripts)."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import reference
from mkdocs.structure.files import File

from lessen import errors
from lessen.methods import builtin_methods

DOCS = Path(__file__).parent


def on_config(config):
    """Give every room of the reference its place under "Python reference"."""
    rooms = [{"All names": "api.md"}, *({reference.room_title(page): page} for page in reference.room_pages())]
    config.nav = [
        {title: rooms} if page == "api.md" else {title: page} for each in config.nav for title, page in each.items()
    ]
    return config


def on_files(files, config):
    """Add the generated pages to the site."""
    pages = {"methods.md": catalogue(), "errors.md": error_page(), **reference.pages()}
    for script in sorted((DOCS / "tutorials").glob("*.py")):
        pages[f"tutorials/{script.stem.replace('_', '-')}.md"] = tutorial(script)
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def catalogue() -> str:
    """One section a method, from its card, knobs and docstring."""
    lines = [
        "# Method catalogue",
        "",
        "Generated from the code of this version; `lessen methods NAME` prints the same.",
        "",
    ]
    families = sorted({cls.card.family for cls in builtin_methods().values()})
    for family in families:
        lines += [f"## {family}", ""]
        for name, cls in builtin_methods().items():
            if cls.card.family == family:
                lines += method_section(name, cls)
    return "\n".join(lines)


def method_section(name, cls) -> list[str]:
    """Card, knobs and notes of one method."""
    card = cls.card
    lines = [
        f"### {name}",
        "",
        card.summary,
        "",
        f"- **Source**: {card.source}",
        f"- **Acts on**: {card.looks_for}",
        f"- **Needs**: {', '.join(sorted(card.needs)) or 'nothing but the weights'}",
        f"- **Claims**: {', '.join(sorted(card.claims)) or 'nothing'}",
        "",
        "| knob | default | allowed | meaning |",
        "|---|---|---|---|",
    ]
    schema = cls.model_json_schema()
    for knob, detail in schema.get("properties", {}).items():
        default, meaning = cell(detail.get("default", "required")), cell(detail.get("description", ""))
        lines.append(f"| `{knob}` | {default} | {allowed(detail)} | {meaning} |")
    return [*lines, "", inspect.getdoc(cls) or "", ""]


def allowed(detail) -> str:
    """Range or choices of one knob, from its JSON schema."""
    if "enum" in detail:
        return ", ".join(f"`{value}`" for value in detail["enum"])
    if "const" in detail:
        return f"`{detail['const']}`"
    if "anyOf" in detail:
        return " or ".join(allowed(option) for option in detail["anyOf"])
    words = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    bounds = [f"{sign} {detail[key]}" for key, sign in words.items() if key in detail]
    return cell(f"{detail.get('type', 'any')} {', '.join(bounds)}".strip())


def cell(value) -> str:
    """Text that is safe inside a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")


def error_page() -> str:
    """Every error a user can meet, with its exit status."""
    lines = [
        "# Errors",
        "",
        "Every error that you can cause is one line: what, where, how to fix it.",
        "",
        "| error | exit status | meaning |",
        "|---|---|---|",
    ]
    for name, cls in vars(errors).items():
        if isinstance(cls, type) and issubclass(cls, errors.LessenError):
            lines.append(f"| `{name}` | {cls.exit_status} | {cell((inspect.getdoc(cls) or '').splitlines()[0])} |")
    return "\n".join(
        [
            *lines,
            "",
            "Status 0 means done; 1 done, but a gate failed; 2 bad input; 3 environment; 4 interrupted, resumable.",
            "",
        ]
    )


def tutorial(script: Path) -> str:
    """Turn a script into a page: its docstring and `# %% [markdown]` comments are prose, the rest is code."""
    source = script.read_text()
    module = ast.parse(source)
    prose = ast.get_docstring(module) or ""
    body = source.split('"""', 2)[2].lstrip("\n")
    blocks = [prose, "", f"*This page is the script `docs/tutorials/{script.name}`; CI runs it.*", ""]
    for part in body.split("# %%"):
        text = part.strip("\n")
        if not text.strip():
            continue
        if text.lstrip().startswith("[markdown]"):
            note, _, code = text.partition("\n\n")
            words = [line.lstrip("# ").rstrip() for line in note.splitlines()[1:]]
            blocks += [" ".join(words), ""]
            text = code.strip("\n")
        if text.strip():
            blocks += ["```python", text, "```", ""]
    return "\n".join(blocks)
