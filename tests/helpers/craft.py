"""Crafts artifacts of every stored class in every way it can, loads them and looks up: a program of its own.

`python craft.py SEED COUNT` prints each attempt before it is made, so that a crash of the process names itself, and
`FAULT` lines where an answer is neither an ArtifactError nor right. Tensors lie between guard pages.
"""

from __future__ import annotations

import copy
import random
import resource
import sys

import torch
from torch import Tensor, nn

from guarded import Guards
from lessen.artifact.structure import ModuleRecord, assemble, hollow
from lessen.artifact.tensors import Held
from lessen.errors import ArtifactError, InputError
from lessen.stored import kernels
from lessen.stored.base import StoredModule
from lessen.stored.kernels import machine
from lessen.stored.tables.embedding import StoredEmbedding
from stored_examples import OTHERS, ROWS, examples

NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    16,
    64,
    255,
    256,
    -1,
    2**15,
    2**31 - 1,
    2**31,
    2**32,
    2**39,
    2**40,
    2**63 - 1,
    -(2**63),
    2**64,
)
ODD = (None, True, 1.5, float("nan"), "x", "", [], [[]], {}, [0], [2**62] * 5)
guards = Guards()


def change_config(config: dict, rng: random.Random) -> str:
    """Change one value anywhere in a configuration; return what was done."""
    places: list[tuple] = []

    def walk(value, where):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            places.append((value, key, f"{where}.{key}"))
            if isinstance(inner, (dict, list)):
                walk(inner, f"{where}.{key}")

    walk(config, "")
    if not places:
        return "nothing to change"
    owner, key, name = rng.choice(places)
    now = owner[key]
    if isinstance(owner, dict) and rng.random() < 0.05:
        del owner[key]
        return f"config{name} taken away"
    near = [now + 1, now - 1, now * 2, now // 2] if isinstance(now, int) and not isinstance(now, bool) else []
    owner[key] = rng.choice([*near, *near, *NUMBERS, *ODD])
    return f"config{name} = {owner[key]!r}"


def change_tensor(state: dict[str, Tensor], rng: random.Random) -> str:
    """Change values, shape or type of one tensor; return what was done."""
    if not state:
        return "no tensor to change"
    name = rng.choice(list(state))
    tensor = state[name].clone()
    how = rng.choice(["one", "one", "one", "all", "flip", "shape", "dtype", "swap"])
    if how in ("one", "all") and tensor.numel():
        if tensor.is_floating_point():
            value = rng.choice([0.0, -1.0, float("nan"), float("inf"), 6e4])
        else:
            info = torch.iinfo(tensor.dtype)
            near = int(tensor.reshape(-1)[rng.randrange(tensor.numel())])
            value = rng.choice(
                [0, 1, info.max, info.min, info.max - 1, near + 1, near - 1, len(tensor) if tensor.dim() else 3]
            )
            value = max(info.min, min(info.max, value))
        where = rng.choice([0, -1, rng.randrange(tensor.numel())])
        if how == "one":
            tensor.view(-1)[where] = value
        else:
            tensor.fill_(value)
        done = f"{name}: {how} {where} = {value}"
    elif how == "flip" and tensor.numel():
        raw = tensor.reshape(-1).view(torch.uint8)
        place, bit = rng.randrange(len(raw)), rng.randrange(8)
        raw[place] ^= 1 << bit
        tensor = raw.view(tensor.dtype).view(tensor.shape)
        done = f"{name}: bit {bit} of byte {place}"
    elif how == "shape" and tensor.dim():
        axis = rng.randrange(tensor.dim())
        count = rng.choice([0, 1, max(0, tensor.shape[axis] - 1)])
        tensor = rng.choice(
            [
                tensor.narrow(axis, 0, min(count, tensor.shape[axis])),
                torch.cat([tensor, tensor], axis),
                tensor.transpose(0, -1),
                tensor.reshape(-1),
                tensor.unsqueeze(0),
            ]
        )
        done = f"{name}: shape {list(tensor.shape)}"
    elif how == "dtype":
        kinds = (torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.int8, torch.bool)
        tensor = tensor.to(rng.choice(kinds))
        done = f"{name}: {tensor.dtype}"
    else:
        other = rng.choice(list(state))
        tensor = state[other].clone()
        done = f"{name} = {other}"
    state[name] = tensor.contiguous()
    return done


def change_child(
    module: StoredModule, state: dict[str, Tensor], records: list[ModuleRecord], rng: random.Random
) -> str:
    """Give a child a record of its own, of sizes that its parent does not expect."""
    children = [(path, child) for path, child in module.named_modules() if isinstance(child, (nn.Embedding, nn.Linear))]
    if not children:
        return change_tensor(state, rng)
    path, child = rng.choice(children)
    rows, columns = child.weight.shape
    rows, columns = rng.choice(
        [
            (rows, 1),
            (rows, columns - 1),
            (1, columns),
            (rows - 1, columns),
            (rows * 2, columns),
            (columns, rows),
            (300, 1),
        ]
    )
    rows, columns = max(1, rows), max(1, columns)
    if isinstance(child, nn.Embedding):
        kind, config = "torch.Embedding", {"num_embeddings": rows, "embedding_dim": columns}
    else:
        kind, config = "torch.Linear", {"in_features": columns, "out_features": rows, "bias": child.bias is not None}
        if child.bias is not None:
            state[f"{path}.bias"] = torch.ones(rows)
    state[f"{path}.weight"] = torch.full((rows, columns), 7.0)
    records.append(ModuleRecord(path=f"part.{path}", kind=kind, config=config))
    return f"{path} is {kind} of {config}"


def load(records: list[ModuleRecord], state: dict[str, Tensor]) -> nn.Module:
    base = nn.Module()
    base.part = nn.Identity()
    weights = Held({f"part.{name}": tensor for name, tensor in state.items()})
    return assemble(hollow(base, records, weights, {}, "crafted"), records, weights, {}, "crafted").part


def guard(module: nn.Module, at_end: bool) -> None:
    """Move every tensor of a module between guard pages."""
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data = guards.copy(tensor, at_end)


def guard_sources(at_end: bool) -> None:
    """Let kernels see derived tensors between guard pages too."""
    plain = kernels.look_up

    def guarded(source, *given, **named):
        def walk(one):
            for name, tensor in getattr(one, "own", {}).items():
                one.own[name] = guards.copy(tensor, at_end)
            for part in getattr(one, "parts", {}).values():
                walk(part)

        walk(source)
        return plain(source, *given, **named)

    kernels.look_up = guarded


def answers(name: str, module: StoredModule, at_end: bool, rng: random.Random) -> str:
    """Return "" where lookups give the same by both ways, or what is wrong."""
    if name in OTHERS:
        inputs = OTHERS[name][1]
        if inputs is None:
            return ""
        try:
            module(*inputs())
        except InputError:
            return ""  # the crafted one reads other sizes, and says so
        except (IndexError, RuntimeError) as error:
            fewer = name == "selected fields" and "out of" in str(error)  # columns than the crafted one reads
            smaller = "can't be greater than actual input size" in str(error)  # pictures than a crafted kernel spans
            return "" if fewer or smaller else f"{type(error).__name__}: {error}"
        return ""
    assert isinstance(module, StoredEmbedding)
    ids = torch.tensor(
        [rng.randrange(min(module.num_embeddings, 10 * ROWS)) for _ in range(24)] + [0, module.num_embeddings - 1] * 4
    )
    ids = guards.copy(
        ids.to(rng.choice([torch.int64, torch.int64, torch.int32])) if module.num_embeddings < 2**31 else ids, at_end
    )
    given = (ids, None, None) if module.mode is None else (ids.view(-1, 4), None, None)
    try:
        fast = module.compiled(*given)
        plain = module.plain(*given)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if fast is not None and not torch.allclose(fast.nan_to_num(), plain.nan_to_num(), rtol=1e-3, atol=1e-4):
        return f"kernel and torch differ by {float((fast - plain).abs().max())}"
    outside = ids.clone()
    outside[rng.randrange(len(ids))] = rng.choice([-1, module.num_embeddings, 2**31 - 1, -(2**31)])
    try:
        module(outside if module.mode is None else outside.view(-1, 4))
    except IndexError:
        return ""
    refused = (module.num_embeddings <= int(outside.max()) and not module.any_id) or int(outside.min()) < 0
    return "an id outside the table was answered" if refused else ""


def main(seed: int, count: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
    torch.set_num_threads(1)
    kernels.SMALLEST = 1
    made = {name: (module, module.config(), dict(module.state_dict())) for name, module in examples().items()}
    names, accepted = sorted(made), 0
    guard_sources(at_end=True)
    with torch.no_grad():
        for number in range(count):
            rng = random.Random(seed * 1_000_003 + number)
            name = names[number % len(names)]
            module, config, state = made[name]
            config, state = copy.deepcopy(config), dict(state)
            records: list[ModuleRecord] = []
            how = rng.choice(["config", "config", "tensor", "tensor", "tensor", "child"])
            if how == "config":
                done = change_config(config, rng)
            elif how == "tensor":
                done = change_tensor(state, rng)
            else:
                done = change_child(module, state, records, rng)
            sys.stdout.write(f"{number} {name}: {done}\n")
            sys.stdout.flush()
            at_end = rng.random() < 0.7
            guards.reset()
            try:
                part = load([ModuleRecord(path="part", kind=module.kind, config=config), *records], state)
            except ArtifactError:
                continue
            except BaseException as error:
                sys.stdout.write(f"FAULT {name}: {done}: {type(error).__name__}: {error}\n")
                continue
            accepted += 1
            guard(part, at_end)
            wrong = answers(name, part, at_end, rng)
            if wrong:
                sys.stdout.write(f"FAULT {name}: {done}: {wrong}\n")
    sys.stdout.write(f"done {count} attempts, {accepted} accepted, kernels {machine.available()}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
