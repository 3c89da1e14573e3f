"""`lessen methods`, `lessen tasks` and `lessen data`: what there is to choose from."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lessen.cli import logs
from lessen.cli.output import AsJson, emit, line, size, table

if TYPE_CHECKING:
    from lessen.method import Method

WORDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command()(methods)
    app.command()(tasks)
    data = typer.Typer(help="Data sets that lessen can get, and your own logs.", no_args_is_help=True)
    data.command("list")(list_data)
    data.command("get")(get_data)
    logs.register(data)
    app.add_typer(data, name="data")


def methods(
    name: Annotated[str | None, typer.Argument(help="Show one method with its knobs.", metavar="[NAME]")] = None,
    family: Annotated[str | None, typer.Option("--family", help="Only this family.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the methods, or show one: source, needs, knobs with their ranges.

    Example: lessen methods emb-rowwise-quant
    """
    from lessen.errors import ConfigError, nearest
    from lessen.methods import builtin_methods, get_method, plugin_names

    if name is not None:
        shown = describe(get_method(name, "lessen methods"))
        emit(shown) if as_json else _show(shown)
        return
    known = builtin_methods()
    families = sorted({cls.card.family for cls in known.values()})
    if family is not None and family not in families:
        raise ConfigError(f"no family is called {family!r}; {nearest(family, families)}")
    chosen = [cls for cls in known.values() if family in (None, cls.card.family)]
    chosen.sort(key=lambda cls: (cls.card.family, cls.card.name))
    if as_json:
        emit({"methods": [describe(cls) for cls in chosen], "plug_ins": plugin_names()})
        return
    table(("family", "method", "what it does"), [(c.card.family, c.card.name, c.card.summary) for c in chosen])
    for plugin, package in plugin_names().items():
        line(f"plug-in {plugin} ({package})")


def describe(cls: type[Method]) -> dict[str, Any]:
    """Return card and knobs of a method as JSON values."""
    card, schema = cls.card, cls.model_json_schema()
    return {
        "name": card.name,
        "family": card.family,
        "version": cls.version,
        "summary": card.summary,
        "source": card.source,
        "acts_on": card.looks_for.split(", "),
        "needs": sorted(card.needs),
        "claims": sorted(card.claims),
        "knobs": {
            knob: {
                "default": detail.get("default"),
                "required": knob in schema.get("required", ()),
                "allowed": allowed(detail),
                "description": detail.get("description", ""),
            }
            for knob, detail in schema.get("properties", {}).items()
        },
        "notes": inspect.getdoc(cls) or "",
    }


def allowed(detail: dict[str, Any]) -> str:
    """Return the range or the choices of one knob or option, from its JSON schema."""
    if "enum" in detail:
        return ", ".join(str(value) for value in detail["enum"])
    if "const" in detail:
        return str(detail["const"])
    if "anyOf" in detail:
        return " or ".join(allowed(option) for option in detail["anyOf"])
    bounds = [f"{sign} {detail[key]}" for key, sign in WORDS.items() if key in detail]
    return f"{detail.get('type', 'any')} {', '.join(bounds)}".strip()


def _show(method: dict[str, Any]) -> None:
    line(f"{method['name']} ({method['family']}, version {method['version']})")
    line(f"{method['summary']}\n")
    line(f"source    {method['source']}")
    line(f"acts on   {', '.join(method['acts_on'])}")
    line(f"needs     {', '.join(method['needs']) or 'nothing but the weights'}")
    line(f"claims    {', '.join(method['claims']) or 'nothing'}\n")
    _show_settings(method["knobs"], "knob")
    line(f"\n{method['notes']}")
    line(f"\nIn a study:  steps: [{{{method['name']}: {{}}}}]    on the command line:  --step {method['name']}")


def _show_settings(settings: dict[str, dict[str, Any]], what: str) -> None:
    rows = [
        (name, "required" if detail["required"] else detail["default"], detail["allowed"], detail["description"])
        for name, detail in settings.items()
    ]
    table((what, "default", "allowed", "meaning"), rows)


def tasks(as_json: AsJson = False) -> None:
    """List the built-in tasks and their options. A task for your own model is fifteen lines of Python.

    Example: lessen tasks
    """
    from lessen.tasks import builtin_tasks

    found = [_describe_task(name, cls) for name, cls in builtin_tasks().items()]
    if as_json:
        emit({"tasks": found})
        return
    for task in found:
        line(f"{task['name']}: {task['summary']}")
        _show_settings(task["options"], "  option")
        line("")


def _describe_task(name: str, cls: Any) -> dict[str, Any]:
    schema = cls.Options.model_json_schema()
    return {
        "name": name,
        "summary": (inspect.getdoc(cls) or "").partition("\n")[0],
        "metrics": list(getattr(cls, "metrics", {})),
        "options": {
            option: {
                "default": detail.get("default"),
                "required": option in schema.get("required", ()),
                "allowed": allowed(detail),
                "description": detail.get("description", ""),
            }
            for option, detail in schema.get("properties", {}).items()
        },
    }


def list_data(as_json: AsJson = False) -> None:
    """List the data sets and small models, their size and licence.

    Example: lessen data list
    """
    from lessen.data.cache import cache_folder
    from lessen.data.catalogue import list_archives, list_datasets

    kept = cache_folder() / "packages"
    found: list[dict[str, Any]] = [
        {
            "name": source.name,
            "what": source.what,
            "bytes": source.bytes,
            "licence": source.licence,
            "package": source.requirement,
            "registry": source.registry,
            "present": (kept / source.filename).is_file(),
        }
        for source in list_datasets()
    ]
    zips = [
        {"name": a.name, "what": a.what, "licence": a.licence, "url": a.url, "md5": a.members, "present": a.present}
        for a in list_archives()
    ]
    if as_json:
        emit({"cache": str(kept), "data": found, "archives": zips})
        return
    rows = [(d["name"], size(d["bytes"]), "here" if d["present"] else "", d["what"], d["licence"]) for d in found]
    rows += [(str(z["name"]), "zip", "here" if z["present"] else "", z["what"], z["licence"]) for z in zips]
    table(("name", ">size", "", "what", "licence"), rows)
    line(f"\nkept in {kept}")


def get_data(name: Annotated[str, typer.Argument(help="Name of a data set.")], as_json: AsJson = False) -> None:
    """Download a data set into the cache and check it; without network, say which file belongs where.

    Example: lessen data get movielens-100k
    """
    from lessen.cli.progress import Reporting
    from lessen.data.catalogue import get

    with Reporting() as log:
        path = get(name, log)
    emit({"name": name, "path": str(path)}) if as_json else line(f"{name}: {path}")
