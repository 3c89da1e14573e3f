"""Training checkpoints as one small archive: exact or near-exact series, random access, proof of resume.

Not a Method: it acts on the files of a training run, not on a model. See docs/checkpoints.md.
"""

from __future__ import annotations

from lessen.checkpoints.archive import Archive
from lessen.checkpoints.near import NearSettings
from lessen.checkpoints.pack import Packed, Packer, PackSettings, pack
from lessen.checkpoints.sources import Snapshot, find_snapshots

__all__ = ["Archive", "NearSettings", "PackSettings", "Packed", "Packer", "Snapshot", "find_snapshots", "pack"]
