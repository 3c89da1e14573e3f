"""The process behind BackgroundPacker: reads one JSON path a line, packs it, removes full checkpoints that may go.

python -m lessen.checkpoints.background ARCHIVE KEEP_FULL [SETTINGS_JSON] < paths
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from lessen.checkpoints.pack import Packer, PackSettings
from lessen.checkpoints.sources import find_snapshots
from lessen.errors import LessenError

_PATIENCE = 600.0
"""Seconds to wait for the packer of a run that was killed: it may be packing what that run left."""


def main(archive: str, keep_full: str, settings: str | None = None) -> int:
    """Pack until standard input ends; return the exit status."""
    os.nice(10)
    asked = PackSettings.model_validate_json(settings) if settings is not None else None
    whole: list[Path] = []
    try:
        with Packer(archive, asked, patience=_PATIENCE) as packer:
            for line in sys.stdin:
                path = Path(json.loads(line))
                for snapshot in find_snapshots([path]):
                    if not packer.holds(snapshot):  # a run that was killed submits its last files again
                        packer.add(snapshot)
                whole.append(path)
                while len(whole) > int(keep_full):
                    remove(whole.pop(0))
    except LessenError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status
    return 0


def remove(checkpoint: Path) -> None:
    """Remove a full checkpoint, file or folder, whose step is packed."""
    if checkpoint.is_dir():
        shutil.rmtree(checkpoint, ignore_errors=True)
    else:
        checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
