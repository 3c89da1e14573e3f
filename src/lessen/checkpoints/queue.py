"""A second name for a checkpoint that waits to be packed, so that its owner may remove or replace it meanwhile.

run/checkpoint-400/...                          the owner's: never changed, removed only by a rule the owner gave
run/.lessen-queue-ARCHIVE/checkpoint-400/...    ours: hard links, gone once the step is packed
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lessen import files
from lessen.checkpoints.groups import natural


def queue_beside(checkpoint: Path, archive: Path) -> Path:
    """Return the folder of second names for checkpoints that lie beside `checkpoint` and go into `archive`."""
    return checkpoint.parent / f".lessen-queue-{archive.name}"


def hold(checkpoint: Path, queue: Path, name: str | None = None) -> Path:
    """Give a checkpoint, file or folder, a second name in `queue`, by default its own; return it.

    It appears whole or not at all. Files are hard links, which cost nothing, or copies where links are not possible.

    Raises:
        OutputError: `queue` cannot be written.
    """
    target = queue / (name or checkpoint.name)
    with files.writing(target):
        queue.mkdir(parents=True, exist_ok=True)
        _remove(target)
        if not checkpoint.is_dir():
            _link(checkpoint, target)
            return target
        with files.atomic_folder(target) as temporary:
            for folder, _, names in os.walk(checkpoint):
                inside = temporary / Path(folder).relative_to(checkpoint)
                inside.mkdir(exist_ok=True)
                for file in names:
                    _link(Path(folder) / file, inside / file)
    return target


def _link(source: Path, target: Path) -> None:
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def waiting(queue: Path) -> Iterator[Path]:
    """Yield what a run that was killed left in `queue`, steps in order."""
    if queue.is_dir():
        names = [path for path in queue.iterdir() if not path.name.startswith(".")]
        yield from sorted(names, key=lambda path: natural(path.name))


def _remove(target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
