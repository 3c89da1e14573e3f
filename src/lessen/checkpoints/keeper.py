"""The former name of `manager`, for training scripts that import it; new ones import `CheckpointManager`."""

from __future__ import annotations

from lessen.checkpoints.manager import CheckpointManager as CheckpointKeeper

__all__ = ["CheckpointKeeper"]
