"""Read the pickle in a PyTorch file without running it: it can describe tensors, and nothing else.

A pickle is a program for a small stack machine that may call anything in Python. This is a machine of its own for
the few instructions that torch.save writes; the standard library only cuts the bytes into instructions. The names a
pickle may use are a table, what they make are inert values, and keys are text or integers, so that nothing in a file
can be run, hashed or walked without end. `pickle.Unpickler` with a `find_class` of ours would not do: its C code can be
made to recurse through nested keys, or to allocate by a memo number, before it asks for any name.
Sources: Lib/pickletools.py of CPython for the instructions; `torch/_weights_only_unpickler.py` and `torch/_utils.py`
of PyTorch for what is in use.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.errors import CheckpointError, UnsupportedWeights, shown

_MAX_INSTRUCTIONS = 1_000_000
"""About 20,000 tensors at some 50 each; takes about a second."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the pickle describes it, unchecked: a view of the storage `key`."""

    storage_type: str
    key: object
    n_storage: object
    offset: object
    shape: object
    strides: object


@dataclass(frozen=True)
class _Name:
    """Something the pickle may name; what it stands for is never imported."""

    text: str


@dataclass(frozen=True)
class _Storage:
    storage_type: str
    key: object
    n_elements: object


class _Damaged(ValueError):
    """The program makes no sense."""


_STORAGE_TYPES = ("Float", "Half", "BFloat16", "Double", "Byte", "Char", "Short", "Int", "Long", "Bool")
_MARK = object()


def read_state(path: Path, program: bytes) -> dict[Any, Any]:
    """Return the dictionary that `program`, the pickle in `path`, describes; tensors in it are `StoredTensor`.

    Raises `CheckpointError` for damage and `UnsupportedWeights` for any name that is not needed to describe tensors.
    """
    machine = _Machine(path)
    n_done = 0
    try:
        for instruction, argument, _ in pickletools.genops(program):
            n_done += 1
            if n_done > _MAX_INSTRUCTIONS:
                raise CheckpointError(path, "its pickle is too long to describe a model's tensors")
            machine.step(instruction.name, argument)
    except (ValueError, LookupError, DeprecationWarning) as error:  # a warning, where the user made those errors
        raise CheckpointError(path, "its pickle is damaged") from error
    state = machine.stack[-1] if machine.stack else None
    if type(state) is not dict:
        raise CheckpointError(path, "does not hold a dictionary of tensors")
    return state


class _Machine:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _MADE:
            self.stack.append(_MADE[name]())
        elif name in _RUN:
            _RUN[name](self, argument)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise UnsupportedWeights(
                f"{self.path.name}: its pickle uses {name}, which describing tensors does not need; it was not run.",
                _NEXT_STEP,
            )

    def pop(self, kind: type) -> Any:
        value = self.stack.pop()
        if type(value) is not kind:
            raise _Damaged
        return value

    def pop_to_mark(self) -> list[Any]:
        values: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def name(self, text: str) -> None:
        if text not in _CALLS and not _is_storage_type(text):
            raise UnsupportedWeights(
                f"{self.path.name}: its pickle names {shown(text)}, which is not part of a tensor; it was not run.",
                _NEXT_STEP,
            )
        self.stack.append(_Name(text))

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def tuple(self, values: list[Any]) -> None:
        if any(value is _MARK for value in values):
            raise _Damaged
        self.stack.append(tuple(values))

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise _Damaged
        target.extend(values)

    def set(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(values) % 2:
            raise _Damaged
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (str, int):
                raise _Damaged
            if key in target:
                raise CheckpointError(self.path, f"has {shown(key)} twice")
            target[key] = value

    def persistent(self) -> None:
        match self.pop(tuple):
            case ("storage", _Name(text), key, _, n_elements) if _is_storage_type(text):
                self.stack.append(_Storage(text.removeprefix("torch."), key, n_elements))
            case _:
                raise _Damaged

    def reduce(self) -> None:
        arguments = self.pop(tuple)
        called = self.pop(_Name).text
        if called not in _CALLS:
            raise _Damaged
        self.stack.append(_CALLS[called](arguments))

    def build(self) -> None:
        """Attributes of a dictionary (`_metadata`: versions of modules), which do not matter here."""
        self.stack.pop()
        if type(self.stack[-1]) is not dict:
            raise _Damaged

    def pop_pair(self) -> list[Any]:
        value, key = self.stack.pop(), self.stack.pop()
        return [key, value]


def _is_storage_type(text: str) -> bool:
    return text in {f"torch.{kind}Storage" for kind in _STORAGE_TYPES}


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if arguments:
        raise _Damaged
    return {}


def _tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    match arguments:
        case (_Storage(storage_type, key, n_elements), offset, shape, strides, *_):
            return StoredTensor(storage_type, key, n_elements, offset, shape, strides)
    raise _Damaged


def _parameter(arguments: tuple[Any, ...]) -> StoredTensor:
    match arguments:
        case (StoredTensor() as tensor, _, _):
            return tensor
    raise _Damaged


_NEXT_STEP = "Look for a repository of the same model with .safetensors files, or one from a source you trust."

_CALLS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}
"""All that a pickle may call, and what is done instead."""

_PUSHED = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}
_RUN: dict[str, Callable[[_Machine, Any], None]] = {
    "GLOBAL": lambda m, text: m.name(text.replace(" ", ".", 1)),
    "STACK_GLOBAL": lambda m, _: m.name(".".join([m.pop(str), m.pop(str)][::-1])),
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": lambda m, _: m.put(len(m.memo)),
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE": lambda m, _: m.tuple(m.pop_to_mark()),
    "TUPLE1": lambda m, _: m.tuple([m.stack.pop()]),
    "TUPLE2": lambda m, _: m.tuple([m.stack.pop(), m.stack.pop()][::-1]),
    "TUPLE3": lambda m, _: m.tuple([m.stack.pop(), m.stack.pop(), m.stack.pop()][::-1]),
    "APPEND": lambda m, _: m.extend([m.stack.pop()]),
    "APPENDS": lambda m, _: m.extend(m.pop_to_mark()),
    "SETITEM": lambda m, _: m.set(m.pop_pair()),
    "SETITEMS": lambda m, _: m.set(m.pop_to_mark()),
    "BINPERSID": lambda m, _: m.persistent(),
    "REDUCE": lambda m, _: m.reduce(),
    "BUILD": lambda m, _: m.build(),
}
