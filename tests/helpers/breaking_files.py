"""File layers for tests: one that never waits for the device, and two that break at a chosen operation."""

from __future__ import annotations

import errno
import os

from lessen import files


class Unsynced(files.FileLayer):
    """Writes without waiting for the device: the same as far as a living machine can see, and thousands of waits less."""

    def sync(self, handle):
        handle.flush()

    def sync_folder(self, folder):
        pass


class CountedFiles(files.FileLayer):
    """Calls `fault` at the n-th operation (0: never), after half of what was to be written is in the file."""

    def __init__(self, fail_at: int) -> None:
        self.count, self.fail_at = 0, fail_at

    def fault(self) -> None:
        raise NotImplementedError

    def _tick(self) -> None:
        self.count += 1
        if self.count == self.fail_at:
            self.fault()

    def open(self, path):
        self._tick()
        return super().open(path)

    def write(self, handle, data):
        if self.count + 1 == self.fail_at:
            handle.write(data[: len(data) // 2])
            handle.flush()
        self._tick()
        super().write(handle, data)

    def sync(self, handle):
        self._tick()
        super().sync(handle)

    def rename(self, source, target):
        self._tick()
        super().rename(source, target)

    def sync_folder(self, folder):
        self._tick()
        super().sync_folder(folder)


class FailingFiles(CountedFiles):
    """Fails as a full disk does."""

    def fault(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


class DyingFiles(CountedFiles):
    """Ends the process without any clean-up."""

    def fault(self) -> None:
        os._exit(9)
