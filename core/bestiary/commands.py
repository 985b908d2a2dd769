"""The commands that are our own: no plugin's command takes the name of one."""

from __future__ import annotations

from collections.abc import Mapping

BUILT_IN: Mapping[str, str] = {name: f"bestiary.cli.{name}:{name}" for name in (
    "run", "chat", "convert", "quantize", "merge", "inspect", "tokenize", "perplexity", "bench", "plugins")}
"""name -> "module:function", as plugins give theirs."""
