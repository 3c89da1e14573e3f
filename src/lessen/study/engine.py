"""The places where the jobs of a study run: in this process, in spawned processes, or on a Ray cluster.

A job is a top-level function of one picklable item. Every engine gives the same results, because a job sets its own
thread count and draws randomness only from the seed in its item; engines decide place and order, nothing else.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from lessen.errors import ConfigError, EnvironmentFault, MissingExtraError, nearest

Item = TypeVar("Item")
Result = TypeVar("Result")
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What became of the item at `index`: a value, or the error that ended its worker."""

    index: int
    value: Result | None = None
    error: str = ""


class Engine(ABC):
    """Runs one function over many items."""

    name: str
    jobs: int = 1
    """How many items run side by side."""

    @abstractmethod
    def outcomes(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Outcome[Result]]:
        """Yield one outcome an item, as they finish.

        A function is expected to return its own failures as values; an error in an outcome means that the worker
        died (killed for memory, crashed in native code).
        """

    @abstractmethod
    def close(self) -> None:
        """Free what the engine holds; it starts again when it is used again."""


def make_engine(name: str, jobs: int) -> Engine:
    """Return the engine called `name` with `jobs` workers. Raises ConfigError for an unknown name or count."""
    if jobs < 1:
        raise ConfigError(f"jobs = {jobs} is not accepted: give 1 or more")
    if name == "local":
        return InlineEngine() if jobs == 1 else ProcessEngine(jobs)
    if name == "ray":
        return RayEngine(jobs)
    raise ConfigError(f"no engine is called {name!r}; {nearest(name, ENGINES)}")


class InlineEngine(Engine):
    """Runs every item in this process, in order."""

    name = "local"

    def outcomes(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Outcome[Result]]:
        """Yield outcomes in order; errors of the function pass through."""
        for index, item in enumerate(items):
            yield Outcome(index, function(item))

    def close(self) -> None:
        """Hold nothing."""


class ProcessEngine(Engine):
    """Runs items in `jobs` spawned processes, which stay until `close`; a worker that dies costs its own item only."""

    name = "local"

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._workers: _Workers | None = None

    def outcomes(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Outcome[Result]]:
        """Yield outcomes as they finish. What is left after a worker died runs one item a process."""
        left = dict(enumerate(items))
        try:
            if self._workers is None:
                self._workers = _Workers(self.jobs)
            for outcome in self._workers.outcomes(function, left):
                left.pop(outcome.index)
                yield outcome
            return
        except BrokenProcessPool:
            self._drop()  # some worker died; which item did it is found out below
        except BaseException:
            self._drop()
            raise
        for index, item in left.items():
            alone = _Workers(1)
            try:
                yield from alone.outcomes(function, {index: item})
            except BrokenProcessPool:
                yield Outcome(index, error="the worker process died, probably for lack of memory; use fewer --jobs")
            finally:
                alone.abandon()

    def close(self) -> None:
        """End the workers."""
        if self._workers is not None:
            self._workers.finish()
            self._workers = None

    def _drop(self) -> None:
        if self._workers is not None:
            self._workers.abandon()
            self._workers = None


class _Workers:
    """A pool of spawned processes that can be abandoned at once."""

    def __init__(self, count: int) -> None:
        context = get_context("spawn")
        # a pipe, not an Event: it also ends with this process, and cannot hang on a worker that was killed
        ours, self._lifeline = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(count, context, start_worker, (ours,))

    def outcomes(self, function: Callable[[Item], Result], items: dict[int, Item]) -> Iterator[Outcome[Result]]:
        with _interrupts_held():
            futures: dict[Future[Result], int] = {self._pool.submit(function, item): at for at, item in items.items()}
        for future in as_completed(futures):
            yield Outcome(futures[future], future.result())

    def finish(self) -> None:
        self._pool.shutdown()
        self._lifeline.close()

    def abandon(self) -> None:
        """Let workers leave at once instead of finishing long jobs that nobody waits for."""
        self._lifeline.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start processes that do not hear Ctrl-C from their first instruction on: they inherit what is blocked here."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(lifeline: Connection[Any, Any]) -> None:
    """Prepare a worker: Ctrl-C is its parent's business, and it ends with its parent even after a kill -9."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_watch, args=(lifeline,), daemon=True).start()


def _watch(lifeline: Connection[Any, Any]) -> None:
    with suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(1)


class RayEngine(Engine):
    """Runs items as Ray tasks: on the cluster of RAY_ADDRESS when set, otherwise on a local one of `jobs` cores.

    Jobs write their results under the output directory, so machines of a cluster must share it.
    """

    name = "ray"

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._mine = False
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("ray", "ray", "the engine 'ray'") from error
        self._ray = ray

    def outcomes(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Outcome[Result]]:
        """Yield outcomes as they finish; a cluster that was not running is started."""
        if not self._ray.is_initialized():
            self._start()
        remote = self._ray.remote(function).options(num_cpus=1, max_retries=1)
        pending = {remote.remote(item): index for index, item in enumerate(items)}
        while pending:
            ready, _ = self._ray.wait(list(pending), num_returns=1)
            for reference in ready:
                yield self._outcome(pending.pop(reference), reference)

    def close(self) -> None:
        """Leave the cluster if this engine joined or started it."""
        if self._mine:
            self._ray.shutdown()
            self._mine = False

    def _start(self) -> None:
        local: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": self.jobs}
        try:
            self._mine = True
            self._ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **local)
        except Exception as error:
            raise EnvironmentFault(f"Ray did not start: {error}; check RAY_ADDRESS, or use --engine local") from error

    def _outcome(self, index: int, reference: Any) -> Outcome[Any]:
        try:
            return Outcome(index, self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return Outcome(index, error=f"the Ray task died: {lines[-1]}")
