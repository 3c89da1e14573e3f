"""Data parallel training: each process takes its rows of every batch, gradients are summed, all copies stay equal.

    torchrun --nproc-per-node 2 my_training.py

    batch of B rows -> rank r: rows r, r + n, r + 2n, ... -> loss * (own rows / B) -> backward -> sum over ranks
    table gradients that are sparse: (row numbers, values) of all ranks are gathered, so that all see the same rows

Processes find each other by the variables that torchrun sets, over gloo. A step equals that of one process on the
whole batch, BatchNorm included, up to rounding; what differs is dropout, whose masks are drawn in each process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lessen.errors import ConfigError, DataError, EnvironmentFault
from lessen.train.nested import map_tensors, tensors_of
from lessen.train.tables import summed_rows

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(hours=6)
"""How long a process waits for the others: the first one may be encoding data or judging the model."""


class Group:
    """The processes that train one model together; by default this one alone, for which every method is free."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.weight = 1.0
        """Share of the rows of the current batch that this process has."""

    @property
    def first(self) -> bool:
        """Say whether this process is the one that judges and writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let the first process do the block before the others enter theirs."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def seed(self, seed: int) -> int:
        """Return a seed of this process's own, the given one in the first."""
        return seed + 1_000_000_007 * self.rank

    # -- batches ------------------------------------------------------------------------------------------------
    def shard(self, batches: Iterable[Any]) -> Iterable[Any]:
        """Return this process's rows of each batch; a last batch with fewer rows than processes is left out."""
        return batches if self.size == 1 else self._own(batches)

    def _own(self, batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            rows = _rows(batch)
            if rows >= self.size:
                own = map_tensors(batch, self._every)
                self.weight = _rows(own) / rows
                yield own

    def _every(self, tensor: Tensor) -> Tensor:
        """Return rows rank, rank + size, ... of a tensor; a single number is everybody's."""
        return tensor[self.rank :: self.size] if tensor.ndim else tensor

    # -- one value for all ----------------------------------------------------------------------------------------
    def same(self, compute: Callable[[], float]) -> float:
        """Return what `compute` gives in the first process, in all of them."""
        value = compute() if self.first else 0.0
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared)

    def mean_loss(self, loss: Tensor) -> float:
        """Return the mean over the whole batch of a loss that is a mean over own rows."""
        value = loss.detach().double() * self.weight
        if self.size > 1:
            dist.all_reduce(value)
        return float(value)

    def total(self, counts: Sequence[int]) -> list[int]:
        """Return sums over the processes."""
        if self.size == 1:
            return list(counts)
        shared = torch.tensor(counts, dtype=torch.int64)
        dist.all_reduce(shared)
        return [int(count) for count in shared]

    def states(self) -> dict[str, Tensor]:
        """Return the state of torch's generator in each process, by the names of a checkpoint."""
        own = torch.get_rng_state()
        if self.size == 1:
            return {"torch": own}
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(gathered, own)
        return {_state_name(rank): state for rank, state in enumerate(gathered)}

    def restore(self, states: Mapping[str, Tensor]) -> None:
        """Set the state of torch's generator. Raises ConfigError if another number of processes wrote it."""
        if len(states) != self.size:
            raise ConfigError(
                f"the checkpoint is of {len(states)} processes, not {self.size}; start as many or remove it"
            )
        torch.set_rng_state(states[_state_name(self.rank)])

    # -- model ------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def spread(self, model: nn.Module) -> None:
        """Give every process the parameters and buffers of the first."""
        if self.size > 1:
            for tensor in [*model.parameters(), *model.buffers()]:
                dist.broadcast(tensor.data, 0)

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all processes: dense ones in one message, sparse ones by gathering their rows."""
        if self.size == 1:
            return
        parameters = list(parameters)
        sparse = _agreed([p.grad is not None and p.grad.is_sparse for p in parameters])
        dense = _agreed([p.grad is not None and not p.grad.is_sparse for p in parameters])
        if any(a and b for a, b in zip(sparse, dense, strict=True)):
            raise EnvironmentFault("processes disagree whether a table's gradient is sparse; they run different code")
        plain = [p for p, one in zip(parameters, dense, strict=True) if one]
        for parameter in plain:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        _reduce([p.grad for p in plain if p.grad is not None])
        for parameter, one in zip(parameters, sparse, strict=True):
            if one:
                parameter.grad = _gathered(parameter, self.size)

    @torch.no_grad()
    def close_epoch(self, model: nn.Module) -> None:
        """Average running statistics and make sure that the copies are still equal. Raises EnvironmentFault."""
        if self.size == 1:
            return
        for buffer in model.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer.div_(self.size)
        own = torch.stack([p.detach().double().sum() for p in model.parameters()])
        first = own.clone()
        dist.broadcast(first, 0)
        differs = (own != first).any().double()
        dist.all_reduce(differs)
        if float(differs):
            raise EnvironmentFault("the copies of the model drifted apart; do all machines run the same software?")

    @contextmanager
    def shared_norms(self, model: nn.Module) -> Iterator[None]:
        """Let BatchNorm see the whole batch while the block runs; afterwards the model's own modules are back."""
        replaced: list[tuple[nn.Module, str, nn.Module]] = []
        try:
            if self.size > 1:
                for parent in model.modules():
                    for name, child in list(parent.named_children()):
                        if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d) and child.affine:
                            replaced.append((parent, name, child))
                            setattr(parent, name, SharedBatchNorm(child))  # type: ignore[arg-type]
            yield
        finally:
            for parent, name, child in replaced:
                child.train(getattr(parent, name).training)
                setattr(parent, name, child)


ALONE = Group()


class SharedBatchNorm(nn.Module):
    """A BatchNorm whose training statistics are of all processes' rows; parameters and buffers are the original's.

    Axis 1 is the channel; mean and biased variance normalise, the unbiased one enters the running variance.
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.momentum = norm.weight, norm.bias, norm.eps, norm.momentum
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)
        self.running_mean: Tensor
        self.running_var: Tensor
        self.num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised `x` [B, channels, ...]."""
        if not self.training:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = torch.tensor(float(x.numel() // x.shape[1]))
        dist.all_reduce(count)
        mean = _shared_sum(x.sum(axes)) / count
        centred = x - mean.view(shape)
        variance = _shared_sum(centred.square().sum(axes)) / count
        with torch.no_grad():
            rate = 0.1 if self.momentum is None else self.momentum
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, rate)
            self.running_var.lerp_(variance * count / (count - 1), rate)
        return centred * (torch.rsqrt(variance + self.eps) * self.weight).view(shape) + self.bias.view(shape)


class _SharedSum(torch.autograd.Function):
    """Sum over processes whose gradient is the sum over processes of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # noqa: ARG004 - the signature of autograd
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def _shared_sum(value: Tensor) -> Tensor:
    return _SharedSum.apply(value)  # type: ignore[no-any-return, no-untyped-call]


def _agreed(flags: list[bool]) -> list[bool]:
    """Return for each flag whether it is set in any process."""
    votes = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return [bool(vote) for vote in votes]


def _reduce(gradients: list[Tensor]) -> None:
    """Sum gradients over processes, in place, as one message for each type."""
    for kind in sorted({gradient.dtype for gradient in gradients}, key=str):
        group = [gradient for gradient in gradients if gradient.dtype == kind]
        flat = torch.cat([gradient.reshape(-1) for gradient in group])
        dist.all_reduce(flat)
        for gradient, part in zip(group, torch.split(flat, [g.numel() for g in group]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _gathered(parameter: nn.Parameter, size: int) -> Tensor:
    """Return the sparse gradient of all processes, coalesced: the same rows in the same order everywhere."""
    width = parameter.shape[1]
    if parameter.grad is None:
        rows, values = torch.empty(0, dtype=torch.int64), parameter.new_empty(0, width)
    else:
        own = parameter.grad if parameter.grad.is_coalesced() else summed_rows(parameter.grad)
        rows, values = own.indices()[0], own.values()
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
    dist.all_gather(counts, torch.tensor([len(rows)]))
    lengths = [int(count) for count in counts]
    # gloo gathers tensors of one size only, so that shorter ones are padded
    longest = max(lengths)
    all_rows = [torch.empty(longest, dtype=torch.int64) for _ in range(size)]
    all_values = [values.new_empty(longest, width) for _ in range(size)]
    dist.all_gather(all_rows, nn.functional.pad(rows, (0, longest - len(rows))))
    dist.all_gather(all_values, nn.functional.pad(values, (0, 0, 0, longest - len(values))))
    indices = torch.cat([part[:length] for part, length in zip(all_rows, lengths, strict=True)])
    joined = torch.cat([part[:length] for part, length in zip(all_values, lengths, strict=True)])
    return summed_rows(torch.sparse_coo_tensor(indices.unsqueeze(0), joined, parameter.shape, check_invariants=False))


def _state_name(rank: int) -> str:
    return "torch" if rank == 0 else f"torch{rank}"


def _rows(batch: Any) -> int:
    """Return the rows of a batch: the first dimension that all its tensors share. Raises DataError."""
    found = {len(tensor) for tensor in tensors_of(batch) if tensor.ndim}
    if len(found) != 1:
        raise DataError(
            f"a batch can be shared among processes only if its tensors have equally many rows, not {found}"
        )
    return found.pop()


@contextmanager
def group() -> Iterator[Group]:
    """Yield the processes that torchrun started, connected over gloo; outside torchrun, this process alone.

    Raises:
        ConfigError: torchrun's variables are incomplete or contradict each other.
        EnvironmentFault: the processes cannot reach each other, or another one stopped.
    """
    size = _number("WORLD_SIZE", 1) if "WORLD_SIZE" in os.environ else 1
    if size == 1:
        yield Group()
        return
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if missing:
        raise ConfigError(f"WORLD_SIZE is {size} but {missing[0]} is not set; start the processes with torchrun")
    rank = _number("RANK", 0)
    if rank >= size:
        raise ConfigError(f"RANK is {rank}, but WORLD_SIZE is {size}; ranks count from 0")
    joined = not dist.is_initialized()
    if joined:
        try:
            dist.init_process_group("gloo", timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise EnvironmentFault(f"process {rank} of {size} cannot meet the others at {place}: {error}") from error
    try:
        yield Group(rank, size)
    except RuntimeError as error:
        if "gloo" not in str(error):
            raise
        raise EnvironmentFault(
            f"process {rank} of {size}: another process stopped; its own message says why"
        ) from error
    finally:
        if joined:
            dist.destroy_process_group()


def _number(name: str, least: int) -> int:
    text = os.environ[name]
    if not text.isdigit() or int(text) < least:
        raise ConfigError(f"{name} is {text!r}, expected a whole number from {least} on; start with torchrun")
    return int(text)


def check_parallel(ranks: Group, batch_size: int) -> None:
    """Refuse a batch that is too small to be shared. Raises ConfigError."""
    if batch_size < ranks.size:
        raise ConfigError(f"a batch of {batch_size} rows cannot be shared by {ranks.size} processes; raise batch_size")
