"""A small writer of torch files, so that the tests of their reader need no torch, and what Python's own unpickler makes
of the hostile ones is known."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[Any]
KINDS = {"float32": "FloatStorage", "float16": "HalfStorage", "uint16": "BFloat16Storage", "float64": "DoubleStorage",
         "int64": "LongStorage", "int32": "IntStorage", "bool": "BoolStorage"}
MAGIC = 0x1950A86A20F9469CFC6C


class Name(NamedTuple):
    """A global."""

    module: str
    name: str


class Call(NamedTuple):
    function: Any
    arguments: Any


class Reference(NamedTuple):
    """A persistent id."""

    pid: Any


class Raw(NamedTuple):
    """Opcodes as they are."""

    code: bytes


class State(NamedTuple):
    """An object that is given a state."""

    target: Any
    state: Any


ORDERED_DICT = Call(Name("collections", "OrderedDict"), ())


def opcodes(value: Any) -> bytes:
    """What pushes the value, in protocol 2."""
    match value:
        case Name(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, arguments):
            return opcodes(function) + opcodes(arguments) + b"R"
        case Reference(pid):
            return opcodes(pid) + b"Q"
        case Raw(code):
            return code
        case State(target, state):
            return opcodes(target) + opcodes(state) + b"b"
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            size = (value.bit_length() + 8) // 8
            return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(opcodes, value)) + b"t"
        case list():
            return b"](" + b"".join(map(opcodes, value)) + b"e"
        case dict():
            return b"}(" + b"".join(opcodes(key) + opcodes(item) for key, item in value.items()) + b"u"
    raise TypeError(value)


def pickled(value: Any) -> bytes:
    return b"\x80\x02" + opcodes(value) + b"."


class TorchFiles:
    """Makes the bytes of torch files."""

    Name, Call, Reference, Raw, State = Name, Call, Reference, Raw, State
    pickled, opcodes = staticmethod(pickled), staticmethod(opcodes)

    @staticmethod
    def tensor(key: str, kind: str, length: int, shape: tuple[int, ...], strides: tuple[int, ...] | None = None,
               offset: int = 0, *more: Any) -> Any:
        """What torch writes for a tensor; by default one in one piece."""
        if strides is None:
            strides = tuple(int(np.prod(shape[i + 1:])) for i in range(len(shape)))
        storage = Reference(("storage", Name("torch", kind), key, "cpu", length, *more))
        return Call(Name("torch._utils", "_rebuild_tensor_v2"), (storage, offset, shape, strides, False, ORDERED_DICT))

    @classmethod
    def records(cls, arrays: Mapping[str, Array], *more: Any) -> dict[str, Any]:
        return {name: cls.tensor(str(i), KINDS[array.dtype.name], array.size, array.shape, None, 0, *more)
                for i, (name, array) in enumerate(arrays.items())}

    @staticmethod
    def archive(pickle: bytes, storages: Mapping[str, bytes], *, prefix: str = "archive", method: int = 0,
                more: Mapping[str, bytes] | None = None, order: bytes | None = b"little") -> bytes:
        """The zip file."""
        written = io.BytesIO()
        with zipfile.ZipFile(written, "w", method) as target:
            target.writestr(f"{prefix}/data.pkl", pickle)
            if order is not None:
                target.writestr(f"{prefix}/byteorder", order)
            for key, data in storages.items():
                target.writestr(f"{prefix}/data/{key}", data)
            for name, data in (more or {}).items():
                target.writestr(name, data)
        return written.getvalue()

    @classmethod
    def zip(cls, arrays: Mapping[str, Array], **options: Any) -> bytes:
        """A state dict as torch saves it today."""
        return cls.archive(pickled(cls.records(arrays)),
                           {str(i): array.tobytes() for i, array in enumerate(arrays.values())}, **options)

    @classmethod
    def old(cls, arrays: Mapping[str, Array], *, little: bool = True, magic: int = MAGIC, version: int = 1001) -> bytes:
        """A state dict as torch saved it before 1.6."""
        system = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"short": 2, "int": 4, "long": 4}}
        keys = [str(i) for i in range(len(arrays))]
        parts = (magic, version, system, cls.records(arrays, None), keys[::-1])
        storages = [struct.pack("<Q", array.size) + array.tobytes() for array in arrays.values()]
        return b"".join(map(pickled, parts)) + b"".join(storages[::-1])


@pytest.fixture(scope="session")
def torch_files() -> type[TorchFiles]:
    return TorchFiles
