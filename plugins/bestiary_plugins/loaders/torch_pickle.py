"""The pickle in a torch file, read by an interpreter that knows the opcodes of state dicts and no others.

Python's own unpickler is not used, not even with its hooks overridden: it has forty opcodes more than a state dict
needs, and what each of them may do to which object would be ours to know in every version of Python. Here nothing is
ever called or imported. The few globals that stand for tensors are constants in a table, and every other global and
opcode is an error that names it. Sources: Python's pickletools; torch/_utils.py and torch/serialization.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from bestiary.errors import BestiaryError

LARGEST = 16 << 20
"""Bytes of a pickle. A tensor takes about 150 of them."""
MOST_STEPS = 1 << 21
"""Opcodes of a pickle: a tensor takes about 40. It bounds the memory too, as no opcode makes more than a small object
and what it reads."""
LONGEST_NAME, LONGEST_NUMBER = 1 << 12, 16


class Global(NamedTuple):
    """A name that a pickle mentions; never imported."""

    module: str
    name: str


class Storage(NamedTuple):
    """A run of `length` numbers that tensors lie in. kind: as torch names it, "HalfStorage"."""

    kind: str
    key: str
    length: int


@dataclass(frozen=True)
class Record:
    """A tensor as the pickle describes it. offset, strides: in numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class OrderedDict(dict[Any, Any]):
    """What `collections.OrderedDict` stands for here: a dict that may be given a state, which is dropped."""


ORDERED_DICT = Global("collections", "OrderedDict")
STORAGES = ("FloatStorage", "HalfStorage", "BFloat16Storage", "DoubleStorage", "LongStorage", "IntStorage",
            "ShortStorage", "CharStorage", "ByteStorage", "BoolStorage", "ComplexFloatStorage", "ComplexDoubleStorage")
UNTYPED = "UntypedStorage"
STORAGE_GLOBALS = {*(Global(module, name) for module in ("torch", "torch.cuda") for name in STORAGES),
                   Global("torch.storage", UNTYPED)}
BYTE_TYPES = {Global("torch", name) for name in ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")}
"""Types that have no storage of their own; they lie in one of bytes."""


def ordered_dict(arguments: tuple[Any, ...]) -> OrderedDict:
    if arguments:
        raise ValueError("an OrderedDict that is made from something")
    return OrderedDict()


def whole(values: Any) -> bool:
    """Whether it is a tuple of integers of 0 and more."""
    return type(values) is tuple and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def tensor(arguments: tuple[Any, ...]) -> Record:
    """_rebuild_tensor(storage, offset, shape, strides)"""
    if len(arguments) != 4 or type(arguments[0]) is not Storage:
        raise ValueError("a tensor that is not made of a storage, an offset, a shape and strides")
    storage, offset, shape, strides = arguments
    if storage.kind == UNTYPED:
        raise ValueError("a tensor of bytes whose type it does not say")
    if not whole((offset,)) or not whole(shape) or not whole(strides) or len(shape) != len(strides) or len(shape) > 8:
        raise ValueError("a tensor whose offset, shape and strides are no whole numbers that belong together")
    return Record(storage, offset, shape, strides)


def tensor_v2(arguments: tuple[Any, ...]) -> Record:
    """_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, backward_hooks, metadata=None)"""
    if not 6 <= len(arguments) <= 7 or type(arguments[4]) is not bool or any(map(filled, arguments[5:])):
        raise ValueError("a tensor with hooks or metadata, or with arguments missing")
    return tensor(arguments[:4])


def tensor_v3(arguments: tuple[Any, ...]) -> Record:
    """_rebuild_tensor_v3(storage, offset, shape, strides, requires_grad, backward_hooks, dtype, metadata=None)"""
    if not 7 <= len(arguments) <= 8 or type(arguments[6]) is not Global or arguments[6] not in BYTE_TYPES \
            or type(arguments[0]) is not Storage or arguments[0].kind != UNTYPED:
        raise ValueError(f"a tensor of bytes that are none of {', '.join(sorted(kind.name for kind in BYTE_TYPES))}")
    return tensor_v2((arguments[0]._replace(kind=arguments[6].name), *arguments[1:6], *arguments[7:]))


def parameter(arguments: tuple[Any, ...]) -> Record:
    """_rebuild_parameter(data, requires_grad, backward_hooks)"""
    if len(arguments) != 3 or type(arguments[0]) is not Record or type(arguments[1]) is not bool \
            or filled(arguments[2]):
        raise ValueError("a parameter that is not made of a tensor alone")
    return arguments[0]


def filled(value: Any) -> bool:
    """Whether it is something else than nothing and an empty dict."""
    return not (value is None or (isinstance(value, dict) and not value))


CALLABLES: dict[Global, Callable[[tuple[Any, ...]], Any]] = {
    ORDERED_DICT: ordered_dict,
    Global("torch._utils", "_rebuild_tensor"): tensor,
    Global("torch._utils", "_rebuild_tensor_v2"): tensor_v2,
    Global("torch._utils", "_rebuild_tensor_v3"): tensor_v3,
    Global("torch._utils", "_rebuild_parameter"): parameter,
}
"""The callables that a pickle may name, and what is done in their place."""
ALLOWED = {*CALLABLES, *STORAGE_GLOBALS, *BYTE_TYPES}


def persistent(pid: Any) -> Storage:
    """("storage", type, key, location, count), and in files before 1.6 a view of another storage or None."""
    if type(pid) is not tuple or not 5 <= len(pid) <= 6 or pid[0] != "storage" or type(pid[1]) is not Global \
            or pid[1] not in STORAGE_GLOBALS or type(pid[2]) is not str or type(pid[3]) is not str \
            or not whole((pid[4],)):
        raise ValueError("a reference that is not to a storage")
    if pid[5:] not in ((), (None,)):
        raise ValueError("a storage that is a view of another one")
    return Storage(pid[1].name, pid[2], pid[4])


MARK = object()


class Reader:
    """Interprets one pickle: `value` is what it holds, `at` where it ends. Dicts have strings as keys, and a
    value's type is looked at first: a tuple that holds itself twice, and so on forty times over, must never be hashed,
    compared or printed."""

    def __init__(self, data: bytes, at: int, what: str) -> None:
        self.data, self.at, self.what = data, at, what
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        try:
            self.value = self._run()
        except UnicodeDecodeError:
            raise BestiaryError(f"{what} holds a name that is no UTF-8 text") from None
        except (IndexError, KeyError):
            raise BestiaryError(f"{what} takes from its stack or memo what is not there; it is damaged") from None
        except ValueError as error:
            raise BestiaryError(f"{what} holds {error}; only state dicts of tensors are read") from None

    def _run(self) -> Any:
        for _ in range(MOST_STEPS):
            code = self.take(1)
            if code == b".":
                if len(self.stack) != 1 or self.stack[0] is MARK:
                    raise ValueError("not one value but several")
                return self.stack[0]
            step = STEPS.get(code)
            if step is None:
                raise ValueError(f"the opcode {opcode_name(code)}")
            step(self)
        raise ValueError(f"more than {MOST_STEPS} opcodes")

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise BestiaryError(f"{self.what} ends early; it is truncated or damaged")
        self.at += size
        return self.data[self.at - size:self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + LONGEST_NAME)
        if end < 0:
            raise ValueError("a name without an end")
        return self.take(end + 1 - self.at)[:-1].decode()

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is MARK:
            raise ValueError("a mark where a value belongs")
        return value

    def since_mark(self) -> list[Any]:
        """What was pushed after the last mark, popped."""
        place = next((i for i in range(len(self.stack) - 1, -1, -1) if self.stack[i] is MARK), None)
        if place is None:
            raise ValueError("a mark that is missing")
        values = self.stack[place + 1:]
        del self.stack[place:]
        return values

    # What the opcodes do, by pickletools' names.

    def proto(self) -> None:
        version = self.number(1)
        if not 2 <= version <= 4:
            raise ValueError(f"pickle protocol {version} (known: 2 to 4)")

    def frame(self) -> None:
        if self.number(8) > len(self.data) - self.at:
            raise BestiaryError(f"{self.what} ends early; it is truncated or damaged")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def text(self, size: int) -> None:
        if size > LONGEST_NAME:
            raise ValueError(f"a text of {size} bytes")
        self.push(self.take(size).decode())

    def long1(self) -> None:
        size = self.number(1)
        if size > LONGEST_NUMBER:
            raise ValueError(f"a number of {size} bytes")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def tuple_of(self, count: int) -> None:
        self.push(tuple([self.pop() for _ in range(count)][::-1]))

    def name(self, name: Global) -> None:
        if name not in ALLOWED:
            raise ValueError(f"the global {f'{name.module}.{name.name}'!r:.120}, which is not read")
        self.push(name)

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("a global whose name is no text")
        self.name(Global(module, name))

    def put(self, place: int) -> None:
        if self.stack[-1] is MARK:
            raise ValueError("a mark where a value belongs")
        self.memo[place] = self.stack[-1]

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if type(function) is not Global or function not in CALLABLES or type(arguments) is not tuple:
            raise ValueError("a call of what is no function")
        self.push(CALLABLES[function](arguments))

    def build(self) -> None:
        """The state that torch gives a state dict: {"_metadata": versions of its modules}."""
        state, target = self.pop(), self.stack[-1]
        if type(target) is not OrderedDict or type(state) is not dict or list(state) != ["_metadata"]:
            raise ValueError("a state (the opcode BUILD) that is not the _metadata of a state dict")

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError("items for what is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) is not str:
                raise ValueError("a dict with a key that is no text")
            if key in target:
                raise ValueError(f"a dict with the key {key!r:.120} twice")
            target[key] = value

    def append(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("items for what is no list")
        self.stack[-1].extend(values)


STEPS: dict[bytes, Callable[[Reader], None]] = {
    b"\x80": Reader.proto,
    b"\x95": Reader.frame,
    b"(": lambda reader: reader.push(MARK),
    b"N": lambda reader: reader.push(None),
    b"\x88": lambda reader: reader.push(True),
    b"\x89": lambda reader: reader.push(False),
    b"K": lambda reader: reader.push(reader.number(1)),
    b"M": lambda reader: reader.push(reader.number(2)),
    b"J": lambda reader: reader.push(int.from_bytes(reader.take(4), "little", signed=True)),
    b"\x8a": Reader.long1,
    b"X": lambda reader: reader.text(reader.number(4)),
    b"\x8c": lambda reader: reader.text(reader.number(1)),
    b")": lambda reader: reader.push(()),
    b"\x85": lambda reader: reader.tuple_of(1),
    b"\x86": lambda reader: reader.tuple_of(2),
    b"\x87": lambda reader: reader.tuple_of(3),
    b"t": lambda reader: reader.push(tuple(reader.since_mark())),
    b"]": lambda reader: reader.push([]),
    b"a": lambda reader: reader.append([reader.pop()]),
    b"e": lambda reader: reader.append(reader.since_mark()),
    b"}": lambda reader: reader.push({}),
    b"s": lambda reader: reader.set_items([reader.pop(), reader.pop()][::-1]),
    b"u": lambda reader: reader.set_items(reader.since_mark()),
    b"q": lambda reader: reader.put(reader.number(1)),
    b"r": lambda reader: reader.put(reader.number(4)),
    b"\x94": lambda reader: reader.put(len(reader.memo)),
    b"h": lambda reader: reader.push(reader.memo[reader.number(1)]),
    b"j": lambda reader: reader.push(reader.memo[reader.number(4)]),
    b"c": lambda reader: reader.name(Global(reader.line(), reader.line())),
    b"\x93": Reader.stack_global,
    b"Q": lambda reader: reader.push(persistent(reader.pop())),
    b"R": Reader.reduce,
    b"b": Reader.build,
}
"""Every opcode that is read: what torch writes for a state dict in the protocols 2 to 4."""


def opcode_name(code: bytes) -> str:
    import pickletools

    names = {opcode.code: opcode.name for opcode in pickletools.opcodes}
    return names.get(code.decode("latin-1"), f"0x{code.hex()}, which is none")


def read_pickle(data: bytes, what: str, at: int = 0) -> tuple[Any, int]:
    """The value of the pickle at `at`, and where it ends. what: names it in errors. Raises BestiaryError for whatever
    is no state dict of tensors, or one of the small values around it in old files."""
    reader = Reader(data, at, what)
    return reader.value, reader.at


def state_dict(value: Any, what: str) -> dict[str, Record]:
    """The tensors by name. Raises BestiaryError where it is something else, or holds something else beside them."""
    if not isinstance(value, dict):
        raise BestiaryError(f"{what} holds a {type(value).__name__}; it must be a dict of tensors")
    for name, item in value.items():
        if not name.isprintable() or not name:
            raise BestiaryError(f"{what}: the name {name!r:.120} is none for a tensor")
        if type(item) is not Record:
            raise BestiaryError(f"{what}: the entry {name!r:.120} is a {type(item).__name__}; it must be a tensor")
    return dict(value)
