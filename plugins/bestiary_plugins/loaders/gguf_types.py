"""The codes of GGUF: kinds of metadata values, types of tensors, types of files.

Source: ggml's docs/gguf.md and gguf.h; sizes as in the `gguf` package, which the tests compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bestiary.encoding import PLAIN, Encoding
from bestiary.errors import BestiaryError
from bestiary.registry import Registry

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
LARGEST_ALIGNMENT = 1 << 16

SCALARS = {0: ("u8", "<u1"), 1: ("i8", "<i1"), 2: ("u16", "<u2"), 3: ("i16", "<i2"), 4: ("u32", "<u4"),
           5: ("i32", "<i4"), 6: ("f32", "<f4"), 7: ("bool", "<u1"), 10: ("u64", "<u8"), 11: ("i64", "<i8"),
           12: ("f64", "<f8")}
"""Code of a metadata value -> (kind, numpy's type for it)."""
STRING, ARRAY = 8, 9
KIND_CODES = {**{kind: code for code, (kind, _) in SCALARS.items()}, "str": STRING}
DTYPES = {kind: np.dtype(dtype) for kind, dtype in SCALARS.values()}


class TensorType(NamedTuple):
    """A tensor's type: its name here (llama.cpp's in lower case), weights and bytes of a block."""

    name: str
    block_size: int
    block_bytes: int

    @property
    def spelling(self) -> str:
        """llama.cpp's name."""
        return self.name[:-2] + "_K" if self.name.endswith("_k") else self.name


TENSOR_TYPES = {code: TensorType(*row) for code, row in {
    0: ("f32", 1, 4), 1: ("f16", 1, 2), 2: ("q4_0", 32, 18), 3: ("q4_1", 32, 20), 6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24), 8: ("q8_0", 32, 34), 9: ("q8_1", 32, 40), 10: ("q2_k", 256, 84), 11: ("q3_k", 256, 110),
    12: ("q4_k", 256, 144), 13: ("q5_k", 256, 176), 14: ("q6_k", 256, 210), 15: ("q8_k", 256, 292),
    16: ("iq2_xxs", 256, 66), 17: ("iq2_xs", 256, 74), 18: ("iq3_xxs", 256, 98), 19: ("iq1_s", 256, 50),
    20: ("iq4_nl", 32, 18), 21: ("iq3_s", 256, 110), 22: ("iq2_s", 256, 82), 23: ("iq4_xs", 256, 136), 24: ("i8", 1, 1),
    25: ("i16", 1, 2), 26: ("i32", 1, 4), 27: ("i64", 1, 8), 28: ("f64", 1, 8), 29: ("iq1_m", 256, 56),
    30: ("bf16", 1, 2), 34: ("tq1_0", 256, 54), 35: ("tq2_0", 256, 66), 39: ("mxfp4", 32, 17), 40: ("nvfp4", 64, 36),
    41: ("q1_0", 128, 18), 42: ("q2_0", 64, 18),
}.items()}
"""Every type code of today. One is read and written as soon as an encoding of its name and sizes is there."""
REPACKED = {31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"}
"""Codes of files of 2024, before llama.cpp put rows in the order of its kernels while loading; it refuses them now."""
TENSOR_CODES = {kind.name: code for code, kind in TENSOR_TYPES.items()}

FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k": 12,
              "q4_k": 15, "q5_k": 17, "q6_k": 18, "iq2_xxs": 19, "iq2_xs": 20, "iq3_xxs": 23, "iq1_s": 24, "iq4_nl": 25,
              "iq3_s": 26, "iq2_s": 28, "iq4_xs": 30, "iq1_m": 31, "bf16": 32, "tq1_0": 36, "tq2_0": 37, "mxfp4": 38,
              "nvfp4": 39, "q1_0": 40, "q2_0": 41}
"""The encoding that most quantized weights have -> general.file_type, a number space of its own: the usual one of
several mixes."""


def decode_i8(rows: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
    """Bytes as the integers they are."""
    return rows.view(np.int8).astype(np.float32)


I8 = Encoding("i8", 1, (1,), decoder=decode_i8)
"""Raw bytes: what planes of foreign encodings are stored as."""


OWN = {**PLAIN, I8.name: I8}


def unknown_type(code: int) -> str:
    """What is said of a tensor with a code that is none of today's."""
    if code not in REPACKED:
        return f"has the unknown type {code}"
    name = REPACKED[code]
    plain = name.rsplit("_", 2)[0]
    return f"is {name}: {plain} with its rows repacked for some processors, as llama.cpp wrote it in 2024 and " \
        f"removed it; quantize the model's source anew to {plain}, or run it with a llama.cpp of that time"


def encoding_of(code: int, known: Mapping[str, Encoding], what: str) -> Encoding:
    """The encoding of a type code, among those `known` by name. Raises BestiaryError, naming `what` has that type."""
    kind = TENSOR_TYPES.get(code)
    encoding = None
    if kind is not None:
        fitting = [one for one in alike(kind.name, known) if fits(one, kind)]
        encoding = OWN.get(kind.name) or (fitting[0] if len(fitting) == 1 else known.get(kind.name))
    if kind is None or encoding is None:
        shown = unknown_type(code) if kind is None else f"is {kind.spelling}, which is not read yet"
        readable = ", ".join(kind.spelling for kind in TENSOR_TYPES.values() if kind.name in OWN or kind.name in known)
        raise BestiaryError(f"{what} {shown}; known: {readable}")
    if not fits(encoding, kind):
        raise BestiaryError(f"{what} is {kind.spelling}, in blocks of {kind.block_size} weights and {kind.block_bytes} "
                            f"bytes; the encoding of that name here has {encoding.block_size} and "
                            f"{', '.join(map(str, encoding.block_bytes))}")
    return encoding


def alike(name: str, known: Mapping[str, Encoding]) -> tuple[Encoding, ...]:
    """The encodings of that name: several plugins may use it, and the one that fits the file is meant."""
    if isinstance(known, Registry):
        return known.alike(name)
    return (known[name],) if name in known else ()


def fits(encoding: Encoding, kind: TensorType) -> bool:
    return (encoding.block_size, encoding.block_bytes) == (kind.block_size, (kind.block_bytes,))


def code_of(encoding: Encoding) -> int | None:
    """The type code of an encoding; None for one that GGUF has no code for."""
    code = TENSOR_CODES.get(encoding.name)
    return code if code is not None and fits(encoding, TENSOR_TYPES[code]) else None
