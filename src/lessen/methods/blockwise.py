"""Walking a model block by block, so that calibration costs one pass however many blocks a model has.

    batch 1   embed ─┤ block 0 ├─┤ block 1 ├─ ... ─┤ block n ├─ stop
    batch 2   embed ─┤ block 0 ├─┤ block 1 ├─ ... ─┤ block n ├─ stop
                     ↑ all batches wait here while a method works on block 0, then all move on to block 1

The host's own forward runs, once a batch, and is held before each block: masks, positions and whatever else one block
hands to the next are the host's, for every family. What a method changes in a block is what later blocks see.

Held at once: the activations of all batches at one block (and the first ones, which hosts keep until they return).
Blocks run in the caller's thread, also when batches move on: each thread's allocator keeps a block's scratch memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lessen.architectures.parts import Block, Stack
from lessen.errors import InputError, TaskError


class _Stop(BaseException):
    """Ends a host's forward that nobody needs any longer; no host catches it."""


@dataclass
class Call:
    """One call of a block, by value: what the host gives it for one batch."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    @property
    def hidden(self) -> torch.Tensor:
        """The hidden states that go in, [batch, tokens, width] in most hosts."""
        first = self.arguments[0] if self.arguments else self.keywords.get("hidden_states")
        if not isinstance(first, torch.Tensor):
            raise InputError(f"the block's first argument is a {type(first).__name__}, not hidden states")
        return first


@dataclass
class Step:
    """One block with the calls that wait for it; what a method changes inside `block.module` stays changed."""

    block: Block
    calls: list[Call]
    _runners: list[_Runner]

    def run(self, number: int) -> Any:
        """Run the block as it is now on the call of batch `number` and return what it returns; nothing moves on."""
        call = self.calls[number]
        return self.block.module(*call.arguments, **call.keywords)

    def advance(self) -> None:
        """Move all batches through the block as it is now; the walk does it by itself before the next block."""
        self.calls = []
        while self._runners:
            self._runners.pop(0).move()


class _Runner:
    """One batch under way in a thread of its own. Walker and runners take turns: only one of them works at a time."""

    def __init__(self, work: Callable[[], None], blocks: int) -> None:
        self.go, self.waits = threading.Semaphore(0), threading.Semaphore(0)
        self.left: int | None = blocks
        """Blocks after which nobody needs the rest of the forward; None runs it to its end."""
        self.block: Block | None = None
        self.call: Call | None = None
        self.run: Callable[..., Any] | None = None
        """What the held block does."""
        self.result: Any = None
        """What it gave, on the way to the host."""
        self.error: BaseException | None = None
        self.stopped = False
        self.thread = threading.Thread(target=self._run, args=(work,), name="lessen-block-walk", daemon=True)

    def _run(self, work: Callable[[], None]) -> None:
        self.go.acquire()
        try:
            with torch.no_grad():  # here: grad mode belongs to a thread
                if not self.stopped:
                    work()
        except _Stop:
            pass
        except BaseException as error:  # handed to the walker, which raises it
            self.error = error
        self.block = self.call = self.run = None
        self.waits.release()

    def hold(self, block: Block, call: Call, run: Callable[..., Any]) -> None:
        """Wait before `block` until the walker has run it. Called by the runner's own thread."""
        self.block, self.call, self.run = block, call, run
        self.waits.release()
        self.go.acquire()
        self.call = None
        if self.stopped:
            raise _Stop

    def passed(self) -> None:
        """Note that a block is done. Called by the runner's own thread."""
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise _Stop

    def move(self) -> None:
        """Run the held block and let the thread go to the next one or to its end. Called by the walker."""
        if self.run is not None and self.call is not None:
            with torch.no_grad():
                self.result = self.run(*self.call.arguments, **self.call.keywords)
        self.go.release()
        self.waits.acquire()
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """End the thread wherever it is held."""
        self.stopped = True
        self.go.release()
        if self.thread.ident is not None:
            self.thread.join()


def walk(
    model: nn.Module,
    stacks: Iterable[Stack],
    batches: Sequence[Any],
    forward: Callable[[Any], Any],
    finish: Callable[[int, Any], None] | None = None,
) -> Iterator[Step]:
    """Yield each block of `stacks` with the calls that wait for it, in the order in which the host calls them.

    Every block is called once a batch, and once more for each `Step.run`. An abandoned walk leaves nothing behind.
    Key-value caches that a host fills on the way are left out: they would grow by each block, and by each `Step.run`.

    Args:
        batches: calibration data; all of them are under way at once.
        forward: runs the whole model on one batch, such as `lambda batch: task.forward(model, batch)`.
        finish: is given the number and the output of each batch. Forwards end after the last block without it, so
            that no logits are made; only the first batch's runs on, to see whether a block is called again.

    Raises:
        TaskError: there are no batches.
        InputError: a block is called twice in one forward, batches take different ways, or no block is called.
    """
    if not batches:
        raise TaskError("no calibration batches: nothing to walk a model with")
    blocks = [block for stack in stacks for block in stack.blocks]
    runners = [_runner(number, batch, forward, finish, len(blocks)) for number, batch in enumerate(batches)]
    was_training = model.training
    model.eval()
    try:
        with _holding(blocks, runners):
            for runner in runners:
                runner.thread.start()
                runner.move()
            yield from _steps(runners, blocks)
    finally:
        for runner in runners:
            runner.stop()
        model.train(was_training)


def _runner(
    number: int, batch: Any, forward: Callable[[Any], Any], finish: Callable[[int, Any], None] | None, blocks: int
) -> _Runner:
    def work() -> None:
        output = forward(batch)
        if finish is not None:
            finish(number, output)

    runner = _Runner(work, blocks)
    if finish is not None or number == 0:
        runner.left = None
    return runner


def _steps(runners: list[_Runner], blocks: list[Block]) -> Iterator[Step]:
    seen: set[str] = set()
    while any(runner.block is not None for runner in runners):
        first = runners[0].block
        if first is not None and first.path in seen:
            raise InputError(f"{first.path} is called twice in one forward: shared blocks cannot be walked one by one")
        block = _common(runners)
        seen.add(block.path)
        step = Step(block, [runner.call for runner in runners if runner.call is not None], list(runners))
        yield step
        step.advance()
    if not seen:
        raise InputError(f"the forward calls none of the {len(blocks)} blocks, such as {blocks[0].path}")


def _common(runners: list[_Runner]) -> Block:
    """Return the block that all batches wait for."""
    waiting = {runner.block.path if runner.block else "the end": runner.block for runner in runners}
    block = next(iter(waiting.values()))
    if len(waiting) > 1 or block is None:
        raise InputError(f"batches take different ways through the model: they wait for {', '.join(waiting)}")
    return block


@contextmanager
def _holding(blocks: list[Block], runners: list[_Runner]) -> Iterator[None]:
    """Hold runners before each block; calls from any other thread pass unchanged."""

    def runner_here() -> _Runner | None:
        here = threading.get_ident()
        return next((runner for runner in runners if runner.thread.ident == here), None)

    def before(block: Block) -> Callable[..., Any]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            runner = runner_here()
            if runner is None:
                return None
            call = Call(tuple(map(without_cache, arguments)), {k: without_cache(v) for k, v in keywords.items()})
            runner.hold(block, call, forwards[block.path])
            return call.arguments, call.keywords

        return hook

    def after(_module: nn.Module, _arguments: Any, _output: Any) -> None:
        runner = runner_here()
        if runner is not None:
            runner.passed()

    def instead(run: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*arguments: Any, **keywords: Any) -> Any:
            runner = runner_here()
            if runner is None:
                return run(*arguments, **keywords)
            result, runner.result = runner.result, None
            return result

        return forward

    handles: list[Any] = []
    forwards = {block.path: block.module.forward for block in blocks}
    own = {b.path: {k: v for k, v in vars(b.module).items() if k == "forward"} for b in blocks}
    try:
        for block in blocks:
            block.module.forward = instead(forwards[block.path])
            handles.append(block.module.register_forward_pre_hook(before(block), with_kwargs=True))
            handles.append(block.module.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for block in blocks:
            vars(block.module).pop("forward", None)
            vars(block.module).update(own[block.path])


def without_cache(value: Any) -> Any:
    """Return a block's argument, or None in place of a cache that holds nothing yet."""
    if callable(getattr(value, "get_seq_length", None)) and callable(getattr(value, "update", None)):
        return None if value.get_seq_length() == 0 else value
    return value
