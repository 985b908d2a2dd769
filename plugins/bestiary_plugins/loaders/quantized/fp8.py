"""Floats of 8 bits (e4m3) with scales: of a whole weight, of its rows, or of blocks of 128 x 128.

Sources: the model card and inference code of DeepSeek-V3 (weight_scale_inv, by which codes are multiplied in spite of
its name); transformers' FineGrainedFP8Config and FbgemmFp8Config; what NVIDIA's ModelOpt writes.
"""

from __future__ import annotations

from collections.abc import Sequence

from bestiary.errors import BestiaryError, short
from bestiary_plugins.loaders.quantized.parts import Parts, Settings
from bestiary_plugins.loaders.quantized.scaled import E4M3, Scaled, take_scales

ENDS = ("_scale_inv", "_scale")
OF_ACTIVATIONS = tuple(f".{what}_{part}" for what in ("input", "activation", "output", "q", "k", "v", "prob")
                       for part in ("scale", "zero_point")) + (".input_scale_ub",)
"""How other programs round activations and the cache: ours do it in their own way."""


def read_fp8(settings: Settings, parts: Parts) -> str:
    """Puts weights in place of their parts. Says how they are quantized."""
    settings.one_of("fmt", ("e4m3",), "e4m3")
    settings.one_of("weight_dtype", ("float8_e4m3fn", "e4m3"), "e4m3")
    block = block_of(settings)
    give_scaled(parts, [block])
    return f"FP8 (e4m3), {of_blocks(block)}"


def of_blocks(block: tuple[int, int] | None) -> str:
    return "a scale a weight or a row" if block is None else f"blocks of {block[0]} x {block[1]}"


def block_of(settings: Settings, key: str = "weight_block_size") -> tuple[int, int] | None:
    block = settings.values.get(key)
    if block is None:
        return None
    if not isinstance(block, list) or len(block) != 2 \
            or not all(type(size) is int and 8 <= size <= 1 << 16 and size % 8 == 0 for size in block):
        raise BestiaryError(f"{settings.where}: {key} = {short(block)}; it must be two multiples of 8")
    return block[0], block[1]


def read_modelopt(settings: Settings, parts: Parts) -> str:
    """Its config.json says it as others do, its own file in a section."""
    section = settings.values.get("quantization", settings.values)
    if not isinstance(section, dict):
        raise BestiaryError(f"{settings.where}: quantization = {short(section)}; it must be an object")
    Settings(section, settings.where).one_of("quant_algo", ("fp8",))
    give_scaled(parts, [None])
    return f"ModelOpt, FP8 (e4m3), {of_blocks(None)}"


def give_scaled(parts: Parts, blocks: Sequence[tuple[int, int] | None], types: tuple[str, ...] = (E4M3,)) -> None:
    """Every weight of these types with its scales; what is said of activations is left out. blocks: of rows and columns
    that share a scale, in some weights or others. Raises BestiaryError for a weight without scales."""
    for name in [name for name, tensor in parts.left.items()
                 if tensor.encoding.name in types and not name.endswith("_zero_point")]:
        weight = parts.take(name, types)
        end = next((end for end in ENDS if name + end in parts.left), None)
        if end is None:
            raise BestiaryError(f"{parts.folder}: tensor {name} is {weight.encoding.name}; {name}_scale is missing")
        scales = take_scales(parts, name + end, weight, blocks)
        zeros = None
        if f"{name}_zero_point" in parts.left:
            zeros = parts.take(f"{name}_zero_point", ("I8",), (0, 1, 2))
            parts.fits(zeros, f"{name}_zero_point", scales.tensor.shape, f"{name}{end}")
        parts.give(name, name, Scaled(name, weight, scales, zeros))
    for name in [name for name in parts.left if name.endswith(OF_ACTIVATIONS)]:
        parts.drop(name)
