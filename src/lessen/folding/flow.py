"""What flows where in one pass of a model: each call of a torch function, what it read, and which module made it.

    step 0  conv2d      reads the input, conv.weight    by conv
    step 1  batch_norm  reads step 0, norm.weight ...   by norm

A recording holds for the inputs it was made with; what is folded on its word is proven on others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments and keywords of one forward."""
ASKING = frozenset(
    {
        "__get__",
        "size",
        "dim",
        "numel",
        "stride",
        "is_floating_point",
        "is_complex",
        "__len__",
        "element_size",
        "get_device",
    }
)
"""Functions that ask for the form of a tensor, not for its values."""
PASSING = frozenset(
    {"dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout", "contiguous"}
)
"""Functions that answer what they are given when nothing is trained."""
SHAPING = frozenset({"flatten", "reshape", "view", "reshape_as", "view_as"})
LIKE = frozenset({"reshape_as", "view_as", "expand_as", "type_as"})
"""Functions that read the values of their first tensor, and of the second only its form."""
_DEEP = 6


@dataclass(frozen=True)
class Step:
    """One call of a torch function; tensors are told by numbers, in the order in which they came to be."""

    index: int
    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    path: str
    """The innermost module that was running, "" for the model itself."""


class Flow:
    """The steps of one pass."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.steps: list[Step] = []
        self.modules = dict(model.named_modules())
        self.calls: Counter[str] = Counter()
        self.given: dict[str, tuple[Any, ...]] = {}
        """What each module was called with, positions and keywords alike, by path."""
        self.answers: dict[str, Any] = {}
        self.held: dict[int, str] = {}
        """Parameters and buffers by number, each with its name."""
        self.returned: frozenset[int] = frozenset()
        self.users: dict[int, list[Step]] = defaultdict(list)
        self.makers: dict[int, Step] = {}
        self.made_by: dict[str, list[Step]] = defaultdict(list)
        """Steps by the module that was running, asking ones left out."""
        self.owners = Counter(id(own) for part in model.modules() for own in _own(part))
        """In how many modules each tensor is registered, by identity."""
        self.low_precision = False
        """Whether some step computed in less than the precision of the weights."""
        self._alive: list[Tensor] = []
        self._numbers: dict[int, int] = {}
        self._stack: list[str] = [""]
        self.numbers: dict[str, int] = {}
        """Numbers of parameters and buffers by each of their names."""
        for name, tensor in (
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ):
            self.numbers[name] = self._number(tensor)
            self.held.setdefault(self.numbers[name], name)

    @classmethod
    @torch.no_grad()
    def record(cls, model: nn.Module, call: Call) -> Flow:
        """Run the model once and return what flowed; the model is in eval mode."""
        flow = cls(model)
        with _Recorder(flow), flow._watching():
            own = copied_call(call)
            answer = model(*own[0], **own[1])
        flow.returned = frozenset(flow._numbers[id(leaf)] for leaf in leaves(answer) if id(leaf) in flow._numbers)
        return flow

    # -- asking --------------------------------------------------------------------------------------------------
    def step_of(self, path: str) -> Step | None:
        """Return the one step that a module of torch made, or None if it was not called once or made several."""
        found = self.made_by[path]
        return found[0] if len(found) == 1 and self.calls[path] == 1 else None

    def inside(self, path: str) -> list[Step]:
        """Return the steps that a module made, or a module in it."""
        return [step for step in self.steps if step.path == path or step.path.startswith(f"{path}.")]

    def source(self, value: int, rows: bool = False) -> Step | None:
        """Return the step that computed a value that nothing else reads, looking through steps that pass it on.

        Args:
            rows: look through steps too that put rows of the last axis into another shape.
        """
        while True:
            maker = self.makers.get(value)
            if maker is None or value in self.returned or len(self.users[value]) != 1:
                return None
            passes = maker.name in PASSING or self._adds_nothing(maker) or (rows and self._keeps_rows(maker))
            if not passes:
                return maker
            value = self.passed(maker)

    def readers(self, value: int) -> list[Step] | None:
        """Return all steps that read a value, looking through steps that pass it on; None if it leaves the model."""
        found = []
        if value in self.returned:
            return None
        for step in self.users[value]:
            if step.name in PASSING:
                further = self.readers(step.makes[0])
                if further is None:
                    return None
                found += further
            else:
                found.append(step)
        return found

    def passed(self, step: Step) -> int:
        """Return the value that a step passes on, the first that no zero constant made."""
        return next((value for value in step.reads if not self._is_zero(value)), step.reads[0])

    def tensor(self, value: int) -> Tensor:
        """Return the tensor of a number."""
        return self._alive[value]

    def number_of(self, tensor: Tensor) -> int:
        """Return the number of a tensor that this pass saw, -1 of any other."""
        return self._numbers.get(id(tensor), -1)

    def _keeps_rows(self, step: Step) -> bool:
        if step.name not in SHAPING or len(step.makes) != 1:
            return False
        before, after = self.tensor(step.reads[0]).shape, self.tensor(step.makes[0]).shape
        return bool(before and after) and before[-1] == after[-1]

    def _adds_nothing(self, step: Step) -> bool:
        return step.name in ("add", "__add__", "__radd__", "add_", "__iadd__") and any(map(self._is_zero, step.reads))

    def _is_zero(self, value: int) -> bool:
        from lessen.stored.constant import Constant

        maker = self.makers.get(value)
        module = None if maker is None else self.modules.get(maker.path)
        return isinstance(module, Constant) and module.value.dim() == 0 and not bool(module.value)

    # -- recording -----------------------------------------------------------------------------------------------
    def add(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any], made: Any
    ) -> None:
        """Take one call in."""
        name = str(getattr(function, "__name__", function))
        outputs = list(leaves(made))
        if name in ASKING and not outputs:
            return
        given = [*leaves(arguments), *leaves(keywords)]
        reads = tuple(self._number(leaf) for leaf in (given[:1] if name in LIKE else given))
        for leaf in outputs:  # what a step returns is its own from here on, even where it wrote over what it was given
            self._numbers.pop(id(leaf), None)
        makes = tuple(self._number(leaf) for leaf in outputs)
        step = Step(len(self.steps), name, function, arguments, keywords, reads, makes, self._stack[-1])
        self.steps.append(step)
        if name not in ASKING:
            self.made_by[step.path].append(step)
        for value in dict.fromkeys(reads):
            self.users[value].append(step)
        self.makers.update(dict.fromkeys(makes, step))
        narrow = (torch.float32, torch.bfloat16, torch.float16)
        self.low_precision |= any(leaf.dtype in narrow for leaf in outputs)

    def _number(self, tensor: Tensor) -> int:
        if id(tensor) not in self._numbers:
            self._numbers[id(tensor)] = len(self._alive)
            self._alive.append(tensor)  # kept, so that its identity stays its own
        return self._numbers[id(tensor)]

    @contextmanager
    def _watching(self) -> Iterator[None]:
        paths = {module: path for path, module in self.modules.items()}

        def enter(module: nn.Module, arguments: Any) -> None:
            path = paths.get(module)
            if path is not None:
                self.calls[path] += 1
                self.given[path] = tuple(arguments)
                self._stack.append(path)

        def leave(module: nn.Module, arguments: Any, keywords: dict[str, Any], answer: Any) -> None:
            path = paths.get(module)
            if path is not None:
                self.given[path] = (*arguments, *keywords.values())  # only here does torch tell the keywords
                self.answers[path] = answer
                self._stack.pop()

        handles = [
            hooks.register_module_forward_pre_hook(enter),
            hooks.register_module_forward_hook(leave, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _own(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


class _Recorder(TorchFunctionMode):
    """Hands every call of a torch function to a flow."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        made = func(*args, **keywords)
        self.flow.add(func, args, keywords, made)
        return made


def fixed_values(flow: Flow) -> set[int]:
    """Return the values that follow from weights alone.

    What a function makes of nothing, such as a range, may vary; what a layer of torch makes of nothing, such as the
    first state of an LSTM, varies with the form of what it is given alone.
    """
    fixed = set(flow.held)
    for step in flow.steps:
        reads = step.reads or tuple(_given_to_a_layer(flow, step))
        if reads and all(value in fixed for value in reads):
            fixed.update(step.makes)
    return fixed


def _given_to_a_layer(flow: Flow, step: Step) -> list[int]:
    module = flow.modules.get(step.path)
    if module is None or not type(module).__module__.startswith("torch.nn."):
        return []
    return [flow.number_of(leaf) for leaf in leaves(flow.given.get(step.path, ()))]


def leaves(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Yield the tensors inside containers, data classes and plain objects such as caches, in order."""
    if isinstance(value, Tensor):
        yield value
    elif depth > _DEEP or isinstance(value, (str, bytes, int, float, type(None), nn.Module, type)):
        return
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from leaves(item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item, depth + 1)
    elif is_dataclass(value):
        for field in fields(value):
            yield from leaves(getattr(value, field.name), depth + 1)
    elif type(value).__module__.partition(".")[0] not in ("builtins", "torch", "numpy"):
        for item in getattr(value, "__dict__", {}).values():
            yield from leaves(item, depth + 1)


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a value with each tensor in its dictionaries, lists and tuples replaced by what `change` makes of it."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(mapped(item, change) for item in value)
    return value


def copied_call(call: Call) -> Call:
    """Return a call of its own tensors: a model may write over what it is given."""
    made: Call = mapped(call, lambda leaf: leaf.clone())
    return made


def first_rows(call: Call, rows: int) -> Call:
    """Return a call with its first rows only, where all of its tensors have as many; else the call itself."""
    sides = {leaf.shape[0] for leaf in leaves(call) if leaf.dim()}
    if len(sides) != 1 or min(sides) <= rows:
        return call
    made: Call = mapped(call, lambda leaf: leaf[:rows] if leaf.dim() else leaf)
    return made


def same_course(flows: Sequence[Flow]) -> bool:
    """Tell whether passes took the same steps by the same modules, whatever their sizes."""
    courses = [[(step.name, step.path) for step in flow.steps] for flow in flows]
    return all(course == courses[0] for course in courses)
