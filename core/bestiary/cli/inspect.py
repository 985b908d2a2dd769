"""`bestiary inspect`: what a checkpoint is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from bestiary.cli import options, terminal
from bestiary.cli.forecast import text as forecast_text
from bestiary.errors import BestiaryError, one_line, printable

SHOWN = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "layer_norm_epsilon", "rope_theta",
         "rope_scaling", "sliding_window",
         "tie_word_embeddings")
"""What most people look for in a config; --json has all of it."""


def inspect(
    context: typer.Context,
    path: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Checkpoint: a file or a folder.")] = None,
    model: options.Model = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    as_json: options.Json = False,
    loader: options.Loader = None,
    architecture: options.Architecture = None,
    plan: Annotated[bool, typer.Option(
        "--plan", help="Say what it will take on disk and in memory; a folder with its config is enough.")] = False,
    ctx: options.Context = None,
) -> None:
    """Say what a checkpoint is, and what it lacks."""
    if ctx is not None and not plan:
        raise BestiaryError("-c goes with --plan")
    if path is not None and model is not None:
        raise BestiaryError("two checkpoints: FILE and -m")
    host = options.host_of(context)
    if plan:
        from bestiary.forecast import forecast

        with terminal.aside(as_json):
            planned = forecast(options.model_path(host, path or model), host, ctx or None, loader, architecture)
        print(as_json_text(planned) if as_json else forecast_text(planned))
        return
    from bestiary import inspection

    with terminal.aside(as_json):
        facts = inspection.inspect(options.model_path(host, path or model), host, loader, architecture)
    print(as_json_text(facts) if as_json else text(facts, tensors))


def as_json_text(facts: dict[str, Any]) -> str:
    """The facts for programs. In ASCII: what a file says of itself may move the cursor or turn a line around."""
    return json.dumps(facts, indent=2)


def text(facts: dict[str, Any], tensors: bool) -> str:
    """The facts for people."""
    family = facts["architecture"] or ("unknown" if facts["weights"] else "none")
    def said(value: Any) -> str:
        return one_line(str(value))  # what stands in a file stays in its line

    origin = facts["provenance"]
    lines = [("format", facts["format"]), *(
        (key, said(origin[key])) for key in ("program", "era", "container", "quantized") if origin and origin[key]),
        ("architecture", family), ("size", terminal.size(facts["bytes"]))]
    if name := facts["metadata"].get("general.name"):
        lines.insert(0, ("name", said(name)))
    if facts["weights"]:
        count, held = terminal.amount(facts["weights"]).strip(), terminal.size(facts["weight_bytes"])
        lines.append(("weights", f"{count}, {held}, {facts['bits_per_weight']:.2f} bits per weight"))
    lines += [(key, said(json.dumps(facts["config"][key])))
              for key in SHOWN if facts["config"].get(key) is not None]
    lines.append(("tokenizer", tokenizer_line(facts["tokenizer"])))
    lines.append(("chat template", "yes" if facts["chat_template"] else "none"))
    if origin:
        if origin["assumed"]:
            lines.append(("not in the file", said(", ".join(
                f"{key} = {json.dumps(value)}" for key, value in origin["assumed"].items()) + ": taken for it")))
        lines += [("lacks", said(lack)) for lack in origin["lacks"]]
    lines += [("problem", problem) for problem in facts["problems"]]
    if origin and facts["weights"]:
        lines.append(("runs", "as it is, in its own types" if facts["runs"] else "not as it is"))
    if facts["convert"]:
        lines.append(("to convert it", said(facts["convert"])))
    lines += [("then", said(line)) for line in facts["becomes"]]
    wide = max(len(key) for key, _ in lines) + 2
    parts = [said(facts["path"]), *(f"  {key:<{wide}}{value}" for key, value in lines)]
    if facts["types"]:
        rows = [["type", "tensors", "weights", "bytes"], *(
            [kind, str(entry["tensors"]), terminal.amount(entry["weights"]), terminal.size(entry["bytes"])]
            for kind, entry in facts["types"].items())]
        parts += ["", terminal.table(rows)]
    if origin and facts["kinds"]:
        rows = [["tensors", "number", "type", "shape"], *(
            [said(kind["name"]), str(kind["tensors"]), kind["type"], " x ".join(map(str, kind["shape"]))]
            for kind in facts["kinds"])]
        parts += ["", terminal.table(rows, left=(0, 2, 3))]
    if tensors:
        rows = [["tensor", "type", "shape"], *(
            [said(tensor["name"]), tensor["type"], " x ".join(map(str, tensor["shape"]))]
            for tensor in facts["tensors"])]
        parts += ["", terminal.table(rows, left=(0, 1, 2))]
    return "\n".join(map(printable, "\n".join(parts).split("\n")))


def tokenizer_line(tokenizer: dict[str, Any] | None) -> str:
    if tokenizer is None:
        return "none"
    source = one_line(", ".join(tokenizer["files"])) or f"{tokenizer['algorithm']} vocabulary"
    ends = ", ".join(map(str, tokenizer["ends"])) or "none"
    bos = "none" if tokenizer["bos"] is None else tokenizer["bos"]
    return f"{source}; {tokenizer['size']} pieces, bos {bos}, ends {ends}"
