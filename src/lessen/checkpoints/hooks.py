"""Packing from other loops: a callback for the Hugging Face Trainer and a hook for `lessen.train.fit`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import nn

from lessen.checkpoints.archive import Archive
from lessen.checkpoints.index import NAME
from lessen.checkpoints.pack import PackSettings
from lessen.checkpoints.packing_process import BackgroundPacker, tell
from lessen.checkpoints.queue import hold, queue_beside, waiting
from lessen.checkpoints.states import whole_number
from lessen.checkpoints.steps import step_in_name
from lessen.errors import ArtifactError, LessenError, MissingExtraError
from lessen.log import SILENT, Log
from lessen.train.hooks import Hook


def trainer_callback(
    archive: str | Path, keep_full: int | None = None, settings: PackSettings | None = None, log: Log = SILENT
) -> Any:
    """Return a TrainerCallback that packs every checkpoint folder the Trainer saves.

    The folders are the Trainer's, and stay as its own rules want (`save_total_limit`, `load_best_model_at_end`): each
    is given a second name when it is saved, and packed under that. Packed folders of this run are
    removed too with `keep_full`, all but the newest `keep_full` and the one the Trainer calls the best.

    Resume with `trainer.train(resume_from_checkpoint=...)` from a folder that is still whole, or from what
    `Archive.unpack` writes. What could not be packed is told in the log (without one, as a warning) and never ends a
    training.

    Raises:
        MissingExtraError: transformers is not installed.
        ConfigError: `keep_full` is below 1.
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise MissingExtraError("hf", "transformers", "the Trainer callback") from error
    if keep_full is not None:
        keep_full = whole_number("keep_full", keep_full, 1, "the newest checkpoint must stay whole")

    class PackCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
        """Queues each saved checkpoint folder for packing."""

        def __init__(self) -> None:
            self.folders = TrainerFolders(Path(archive), keep_full, settings, log)

        def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.is_world_process_zero:
                folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                self.folders.saved(folder, state.best_model_checkpoint)

        def on_train_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:  # noqa: ARG002
            self.folders.finish(state.best_model_checkpoint)

    return PackCallback()


class TrainerFolders:
    """The checkpoint folders of one run of a Trainer: packed, and removed where the owner says so."""

    def __init__(self, archive: Path, keep_full: int | None, settings: PackSettings | None, log: Log) -> None:
        """Pack into `archive`; `keep_full` None removes no folder."""
        self.archive, self.keep_full, self.settings, self.log = archive, keep_full, settings, log
        self._packer: BackgroundPacker | None = None
        self._saved: list[Path] = []

    def saved(self, folder: Path, best: str | None) -> None:
        """Queue a folder that is complete. A queue that cannot be written is told of; training goes on."""
        queue = queue_beside(folder, self.archive)
        try:
            if self._packer is None:
                self._packer = BackgroundPacker(self.archive, 0, self.settings, self.log)
                for left in waiting(queue):
                    if left.name != folder.name:
                        self._packer.submit(left)
            self._packer.submit(hold(folder, queue))
        except LessenError as error:
            tell(self.log, f"{folder.name} is not packed: {error}")
        self._saved = [known for known in self._saved if known != folder] + [folder]
        self._release(best)

    def finish(self, best: str | None) -> None:
        """Wait for the packer, then remove what may go."""
        packer, self._packer = self._packer, None
        if packer is not None:
            try:
                packer.close()
            except LessenError as error:
                tell(self.log, str(error))
        self._release(best)
        for queue in {queue_beside(folder, self.archive) for folder in self._saved}:
            if queue.is_dir() and not any(queue.iterdir()):
                queue.rmdir()

    def _release(self, best: str | None) -> None:
        if self.keep_full is None or not (self.archive / NAME).exists():
            return
        try:
            packed = set(Archive(self.archive).steps)
        except ArtifactError as error:
            tell(self.log, f"no folder is removed: {error}")
            return
        for folder in self._saved[: -self.keep_full]:
            waits = (queue_beside(folder, self.archive) / folder.name).exists()
            is_best = best is not None and Path(best).resolve() == folder.resolve()
            if step_in_name(folder.name) in packed and not waits and not is_best:
                shutil.rmtree(folder, ignore_errors=True)


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
        queue = queue_beside(self.checkpoint, self.archive)
        held = hold(self.checkpoint, queue, f"{self.checkpoint.stem}-step-{self._epoch}{self.checkpoint.suffix}")
        if self._packer is None:
            self._packer = BackgroundPacker(self.archive, 0, self.settings, self.log)
        self._packer.submit(held)
