"""Places of a space that the model lacks, told before its reference is trained."""

from __future__ import annotations

import glob

from lessen.errors import ConfigError, LessenError, nearest
from lessen.methods.sites import matches
from lessen.search.space import Space
from lessen.task import Task


def check_places(space: Space, task: Task) -> None:
    """Refuse a place that no part of the untrained model matches, and nothing that a step could put into one.

    Tasks that build no model are not asked.

    Raises:
        ConfigError: names the place and those near it.
    """
    try:
        parts = dict(task.build().named_modules())
    except (LessenError, NotImplementedError):
        return
    known = [name for name in parts if name]
    leaves = {name for name in known if not any(True for _ in parts[name].children())}
    steps = (step for slot in space.slots for step in slot.options if step is not None)
    for place in sorted({place for step in steps for place in getattr(step, "only", None) or ()}):
        inside = {place.rsplit(".", count)[0] for count in range(1, place.count(".") + 1)}
        if glob.has_magic(place) or any(matches(path, place) for path in known) or leaves & inside:
            continue
        raise ConfigError(f"space: {place!r} matches no module of the model; {nearest(place, known)}")
