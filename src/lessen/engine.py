"""Where the jobs of a study run: in this process, in spawned processes, or on a Ray cluster.

A job is a top-level function of one picklable item. Every engine gives the same results, because a job sets its own
thread count and draws randomness only from the seed in its item; engines decide place and order, nothing else.
"""

from __future__ import annotations

import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Generic, TypeVar

from lessen.errors import ConfigError, EnvironmentFault, MissingExtraError, nearest

Item = TypeVar("Item")
Result = TypeVar("Result")
ENGINES = ("local", "ray")
WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What became of the item at `index`: a value, or the error that ended its worker."""

    index: int
    value: Result | None = None
    error: str = ""


class Engine(ABC):
    """Runs one function over many items."""

    name: str

    @abstractmethod
    def outcomes(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Outcome[Result]]:
        """Yield one outcome an item, as they finish.

        A function is expected to return its own failures as values; an error in an outcome means that the worker
        died (killed for memory, crashed in native code).
        """


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


class ProcessEngine(Engine):
    """Runs items in `jobs` spawned processes; a worker that dies costs its own item only."""

    name = "local"

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    def outcomes(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Outcome[Result]]:
        """Yield outcomes as they finish. After a worker died, what is left runs one item a process."""
        left = dict(enumerate(items))
        try:
            for outcome in self._pool(function, left, self.jobs):
                del left[outcome.index]
                yield outcome
            return
        except BrokenProcessPool:
            pass  # some worker died; which item did it is found out below
        for index, item in list(left.items()):
            try:
                yield from self._pool(function, {index: item}, 1)
            except BrokenProcessPool:
                yield Outcome(index, error="the worker process died, probably for lack of memory; use fewer --jobs")

    def _pool(
        self, function: Callable[[Item], Result], items: dict[int, Item], jobs: int
    ) -> Iterator[Outcome[Result]]:
        context = get_context("spawn")
        stop = context.Event()
        pool = ProcessPoolExecutor(
            max_workers=min(jobs, max(1, len(items))), mp_context=context, initializer=start_worker,
            initargs=(os.getpid(), stop),
        )  # fmt: skip
        try:
            futures: dict[Future[Result], int] = {pool.submit(function, item): at for at, item in items.items()}
            for future in as_completed(futures):
                yield Outcome(futures[future], future.result())
        except BaseException:
            stop.set()  # workers leave at once instead of finishing long jobs that nobody waits for
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()


def start_worker(parent: int, stop: Any) -> None:
    """Prepare a worker: Ctrl-C is its parent's business, and it ends with its parent even after a kill -9."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_watch, args=(parent, stop), daemon=True).start()


def _watch(parent: int, stop: Any) -> None:
    while not stop.wait(WATCH_SECONDS):
        if os.getppid() != parent:
            break
    os._exit(1)


class RayEngine(Engine):
    """Runs items as Ray tasks: on the cluster of RAY_ADDRESS when set, otherwise on a local one of `jobs` cores.

    Jobs write their results under the output directory, so machines of a cluster must share it.
    """

    name = "ray"

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("ray", "ray", "the engine 'ray'") from error
        self._ray = ray

    def outcomes(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Outcome[Result]]:
        """Yield outcomes as they finish; a started cluster is shut down at the end."""
        ray = self._ray
        mine = not ray.is_initialized()
        if mine:
            self._start()
        try:
            remote = ray.remote(function).options(num_cpus=1, max_retries=1)
            pending = {remote.remote(item): index for index, item in enumerate(items)}
            while pending:
                ready, _ = ray.wait(list(pending), num_returns=1)
                for reference in ready:
                    yield self._outcome(pending.pop(reference), reference)
        finally:
            if mine:
                ray.shutdown()

    def _start(self) -> None:
        local: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": self.jobs}
        try:
            self._ray.init(include_dashboard=False, log_to_driver=False, logging_level="error", **local)
        except Exception as error:
            raise EnvironmentFault(f"Ray did not start: {error}; check RAY_ADDRESS, or use --engine local") from error

    def _outcome(self, index: int, reference: Any) -> Outcome[Any]:
        try:
            return Outcome(index, self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return Outcome(index, error=f"the Ray task died: {lines[-1]}")
