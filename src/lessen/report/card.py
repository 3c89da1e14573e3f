"""The report card as one HTML file without scripts, and as Markdown."""

from __future__ import annotations

import os
import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lessen.files import atomic_write
from lessen.judging.card import Card, write_card
from lessen.judging.places import PAGE
from lessen.report import content
from lessen.report.markdown import safe
from lessen.report.page import asset, digest_of


def headline(card: Card) -> str:
    """Return the sentence that opens a card."""
    faults = len(card.caught)
    suites = f"{len(card.sections)} suite{'s' * (len(card.sections) != 1)}"
    if not faults:
        return f"Nothing caught by {suites}"
    by = len({name for name, _ in card.caught})
    return f"{faults} fault{'s' * (faults != 1)} caught by {by} of {suites}"


def write(card: Card, out: Path, back: Path | None = None) -> Path:
    """Write card.json, card.html and card.md into `out` and return the page.

    Args:
        back: page of the frontier that the card belongs to.
    """
    write_card(card, out)
    link = os.path.relpath(back, out) if back is not None else ""
    atomic_write(out / "card.md", markdown(card))
    atomic_write(out / PAGE, page(card, link))
    return out / PAGE


def page(card: Card, back: str = "") -> str:
    """Return the card as HTML; every text is escaped, nothing in it may run."""
    style = asset("page.css")
    environment = Environment(
        loader=PackageLoader("lessen.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest_of(style)}'; base-uri 'none'"
    return environment.get_template("card.html.jinja").render(
        card=card,
        headline=headline(card),
        style=Markup(style),
        policy=policy,
        back=back,
        env=list(content.flat(card.env)),
    )


def markdown(card: Card) -> str:
    """Return the card as Markdown."""
    environment = Environment(
        loader=PackageLoader("lessen.report", "."),
        autoescape=False,
        finalize=safe,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    text = environment.get_template("card.md.jinja").render(card=card, headline=headline(card))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
