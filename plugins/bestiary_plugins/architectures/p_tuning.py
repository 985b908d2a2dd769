"""P-Tuning v2: learned keys and values before the first token (Liu et al. 2021, arXiv 2110.07602).

A row of the table holds, for every layer, a key and a value. Where it was trained through a projection, a row goes
through two matrices with a tanh between them first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bestiary.config import whole
from bestiary.plugin import Key, Past, Rule, Trace

Config = Mapping[str, Any]

KEYS = (Key("pre_seq_len", "{arch}.prefix.length", "u32", to_file=lambda count: count or None),)


def rules(prefix: str) -> tuple[Rule, ...]:
    """Of checkpoints in which the table's names begin so."""
    return (Rule(f"{prefix}.embedding.weight", "prefix_embd.weight"),
            *(Rule(f"{prefix}.trans.{i}.{part}", f"prefix_{name}.{part}")
              for i, name in ((0, "in"), (2, "out")) for part in ("weight", "bias")))


def sizes(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What of a config says how many rows there are, and whether they are projected."""
    table, inner = shapes.get("prefix_embd.weight", (0, 0)), shapes.get("prefix_in.weight", (0, 0))
    return {"pre_seq_len": whole(config, "pre_seq_len", table[0], low=0, high=1 << 16),
            "prefix_width": table[-1], "prefix_projection": inner[0]}


def own_keys(config: Config) -> tuple[str, ...]:
    """What only a normalised config has."""
    return ("prefix_width", "prefix_projection", *(() if config["pre_seq_len"] else ("pre_seq_len",)))


def published_keys(config: Config) -> dict[str, Any]:
    """What the published config of a model with a prefix says of it."""
    return {"prefix_projection": bool(config["prefix_projection"])} if config["pre_seq_len"] else {}


def past(config: Config, kv_heads: int, head_dim: int) -> Past | None:
    """What fills the cache, from a normalised config; None where the model has no prefix."""
    if not config["pre_seq_len"]:
        return None
    g, layers, width = Trace(), config["num_hidden_layers"], kv_heads * head_dim
    inner = config["prefix_projection"]
    x = g.embed("prefix_embd.weight", config["pre_seq_len"], (inner and config["prefix_width"]) or 2 * layers * width,
                index="position")
    if inner:
        x = g.soft_cap(g.linear(x, "prefix_in.weight", inner, bias="prefix_in.bias"), 1.0)  # tanh
        x = g.linear(x, "prefix_out.weight", 2 * layers * width, bias="prefix_out.bias")
    a = x
    for i in g.layers(layers):
        k, v = (g.slice(x, (2 * i + part) * width, (2 * i + part + 1) * width) for part in range(2))
        a = g.attention(k, k, v, kv_heads, kv_heads)
    return Past(g.finish(a, a), config["pre_seq_len"])
