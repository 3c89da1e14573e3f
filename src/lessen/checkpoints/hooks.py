"""Packing from other loops: a callback for the Hugging Face Trainer and a hook for `lessen.train.fit`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from lessen.checkpoints.keeper import BackgroundPacker
from lessen.checkpoints.pack import PackSettings
from lessen.errors import ConfigError, MissingExtraError
from lessen.log import SILENT, Log
from lessen.train.hooks import Hook


def trainer_callback(
    archive: str | Path, keep_full: int = 2, settings: PackSettings | None = None, log: Log = SILENT
) -> Any:
    """Return a TrainerCallback that packs every checkpoint folder the Trainer saves and keeps the newest whole.

    Resume with `trainer.train(resume_from_checkpoint=...)` from a folder that is still whole, or from what
    `Archive.unpack` writes.

    Raises:
        MissingExtraError: transformers is not installed.
        ConfigError: `keep_full` is below 1; at the start of training, save_total_limit is set as well.
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise MissingExtraError("hf", "transformers", "the Trainer callback") from error
    if keep_full < 1:
        raise ConfigError(f"keep_full = {keep_full} is not accepted: the newest checkpoint must stay whole")

    class PackCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
        """Queues each saved checkpoint folder for packing."""

        def __init__(self) -> None:
            self.packer: BackgroundPacker | None = None

        def on_train_begin(self, args: Any, *_: Any, **__: Any) -> None:
            if args.save_total_limit is not None:
                raise ConfigError("save_total_limit would remove folders before they are packed; leave it unset")

        def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.is_world_process_zero:
                if self.packer is None:
                    self.packer = BackgroundPacker(Path(archive), keep_full, settings, log)
                self.packer.submit(Path(args.output_dir) / f"checkpoint-{state.global_step}")

        def on_train_end(self, *_: Any, **__: Any) -> None:
            if self.packer is not None:
                self.packer.close()
                self.packer = None

    return PackCallback()


class ArchiveHook(Hook):
    """Packs the checkpoint file that `fit(..., checkpoint=path)` replaces after each epoch.

    An epoch's file is taken when the next epoch ends; `close` takes the last one and waits.
    """

    def __init__(
        self, checkpoint: Path, archive: str | Path, settings: PackSettings | None = None, log: Log = SILENT
    ) -> None:
        """Name the file given to `fit` and the archive."""
        self.checkpoint, self.archive, self.settings, self.log = checkpoint, Path(archive), settings, log
        self._packer: BackgroundPacker | None = None
        self._epoch = 0

    def epoch_end(self, model: nn.Module, epoch: int, score: float) -> None:  # noqa: ARG002
        """Queue the file of the epoch before."""
        if self._epoch == epoch - 1 and epoch > 1:
            self._take()
        self._epoch = epoch

    def close(self) -> None:
        """Queue the file of the last epoch and wait for the packer. Raises OutputError if packing failed."""
        if self._epoch and self.checkpoint.exists():
            self._take()
        if self._packer is not None:
            self._packer.close()
            self._packer = None

    def _take(self) -> None:
        """Give the current file a second name, under which it outlives its replacement, and queue that."""
        name = self.checkpoint.with_name(f"{self.checkpoint.stem}-step-{self._epoch}{self.checkpoint.suffix}")
        name.unlink(missing_ok=True)
        os.link(self.checkpoint, name)
        if self._packer is None:
            self._packer = BackgroundPacker(self.archive, 0, self.settings, self.log)
        self._packer.submit(name)
