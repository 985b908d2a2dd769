"""Options that several commands share, each with its old spellings."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bestiary.errors import BestiaryError
from bestiary.host import Host

if TYPE_CHECKING:
    from bestiary.sampling import Sampling

log = logging.getLogger("bestiary")

SAMPLER_NAMES = {"temp": "temperature", "penalty": "penalties"}
"""Other spellings of samplers."""
MODEL = "demo"
"""The command whose module brings the model that is run where none is named: its function `model` gives the path."""

Model = Annotated[Path | None, typer.Option(
    "-m", "--model", metavar="PATH", help="Checkpoint, of any known format; without it a small one for trying out.")]
Type = Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Quantize to this type while loading.")]
Threads = Annotated[int | None, typer.Option(
    "-t", "--threads", metavar="N", help="Threads; by default what the machine allows.")]
Context = Annotated[int | None, typer.Option(
    "-c", "--ctx-size", "--context", metavar="N", help="Tokens the context holds; 0 for what the model was made for.")]
BatchSize = Annotated[int, typer.Option(
    "-b", "--batch-size", metavar="N", help="Tokens of a prompt that are computed at once.")]
Backend = Annotated[str | None, typer.Option("--backend", metavar="NAME", help="Backend; by default the fastest here.")]
Loader = Annotated[str | None, typer.Option("--loader", metavar="NAME", help="Read the file as this format.")]
Architecture = Annotated[str | None, typer.Option(
    "--architecture", metavar="NAME", help="Take the model for one of this family.")]
TokenizerFile = Annotated[Path | None, typer.Option(
    "--tokenizer", metavar="FILE", help="Take the tokenizer from this file or checkpoint.")]
Add = Annotated[Path | None, typer.Option(
    "--add", metavar="PATH", help="A checkpoint of further tensors, a trained prefix for example.")]
Base = Annotated[Path | None, typer.Option(
    "--base", metavar="PATH", help="The model that a delta or an adapter was made for.")]
Lora = Annotated[list[str] | None, typer.Option(
    "--lora", metavar="PATH", help="An adapter for the base; several are put on in the order given.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Pure = Annotated[bool, typer.Option("--pure", help="Every matrix in this type, the output matrix too.")]
Requantize = Annotated[bool, typer.Option(
    "--allow-requantize", help="Quantize weights that are quantized already; this adds the errors of both.")]

RmsEps = Annotated[float | None, typer.Option(
    "--rms-norm-eps", "-eps", "--eps", metavar="X", help="In place of what the checkpoint says.")]
RopeBase = Annotated[float | None, typer.Option(
    "--rope-freq-base", metavar="X", help="In place of what the checkpoint says.")]
RopeScale = Annotated[float | None, typer.Option(
    "--rope-freq-scale", metavar="X", help="1 / N stretches the context by N.")]
ConfigValues = Annotated[list[str] | None, typer.Option(
    "--config", metavar="KEY=VALUE", help="A value of the config in place of the checkpoint's own, as JSON; several "
    "may be given. `inspect` shows the keys.")]

Gpu = Annotated[list[str] | None, typer.Option(
    "-ngl", "--n-gpu-layers", "--gpu-layers", metavar="N", help="Accepted; everything runs on the CPU.")]

Predict = Annotated[int, typer.Option(
    "-n", "--n-predict", "--predict", metavar="N",
    help="Tokens to generate; -1 until the model ends, -2 until the context is full.")]
ThreadsBatch = Annotated[int | None, typer.Option(
    "-tb", "--threads-batch", metavar="N", help="Threads for prompts; by default as -t.")]
Seed = Annotated[int | None, typer.Option("-s", "--seed", metavar="N", help="Random seed; -1 draws one.")]
Temperature = Annotated[float, typer.Option(
    "--temp", "--temperature", metavar="X", help="0 takes the likeliest token.")]
TopK = Annotated[int, typer.Option("--top-k", metavar="N", help="Only the N likeliest; 0 is off.")]
TopP = Annotated[float, typer.Option(
    "--top-p", metavar="X", help="Only the likeliest, up to this sum; 1 is off.")]
MinP = Annotated[float, typer.Option(
    "--min-p", metavar="X", help="Only what is this fraction as likely as the likeliest; 0 is off.")]
RepeatPenalty = Annotated[float, typer.Option(
    "--repeat-penalty", metavar="X", help="Divides the logits of recent tokens; 1 is off.")]
FrequencyPenalty = Annotated[float, typer.Option("--frequency-penalty", metavar="X", help="0 is off.")]
PresencePenalty = Annotated[float, typer.Option("--presence-penalty", metavar="X", help="0 is off.")]
RepeatLastN = Annotated[int, typer.Option(
    "--repeat-last-n", metavar="N", help="Tokens the penalties look at; -1 all.")]
Samplers = Annotated[str | None, typer.Option(
    "--samplers", metavar="NAMES", help='The chain: "penalties;top_k;top_p;min_p;temperature".')]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Never end by itself.")]
CacheTypeK = Annotated[str | None, typer.Option(
    "-ctk", "--cache-type-k", metavar="TYPE", help="Type of the cached keys: f32, f16 or another of the backend's.")]
CacheTypeV = Annotated[str | None, typer.Option(
    "-ctv", "--cache-type-v", metavar="TYPE", help="Type of the cached values; a wrong name lists them.")]
ChatTemplate = Annotated[str | None, typer.Option(
    "--chat-template", metavar="NAME|FILE", help="Chat format: the name of a known one, or a file of Jinja.")]


def overrides(rms_eps: float | None, rope_base: float | None, rope_scale: float | None) -> dict[str, Any]:
    """The config values that options of old command lines replace."""
    for option, value in (("-eps", rms_eps), ("--rope-freq-base", rope_base), ("--rope-freq-scale", rope_scale)):
        if value is not None and not 0 < value < math.inf:
            raise BestiaryError(f"{option} {value}: a number above 0 is wanted")
    scaling = {} if rope_scale is None else {
        "rope_scaling": {"rope_type": "linear", "factor": 1 / rope_scale}, "rope_factor": 1 / rope_scale}
    values = {"rms_norm_eps": rms_eps, "rope_theta": rope_base}
    return {**{key: value for key, value in values.items() if value is not None}, **scaling}


def config_values(given: Sequence[str] | None) -> dict[str, Any]:
    """What --config names. A value that is no JSON is a text."""
    values: dict[str, Any] = {}
    for entry in given or ():
        key, sign, text = entry.partition("=")
        if not key or not sign:
            raise BestiaryError(f"--config {entry!r}: KEY=VALUE is wanted")
        if key in values:
            raise BestiaryError(f"--config {key} is given twice")
        try:
            values[key] = json.loads(clean(text))
        except (ValueError, RecursionError):
            values[key] = clean(text)
    return values


def host_of(context: typer.Context) -> Host:
    """The plugins of this command line."""
    host = context.find_object(Host)
    if host is None:
        raise RuntimeError("the command was not called through bestiary.cli.main")
    return host


def model_path(host: Host, model: Path | None) -> Path:
    """The model named, or the one that comes with the command `demo`."""
    if model is not None:
        return model
    target = host.commands.get(MODEL)
    if target is None:
        raise BestiaryError("no model is named; -m PATH names one")
    module: Any = import_module(target.partition(":")[0])
    return Path(module.model())


def no_gpu(given: Sequence[str] | None) -> None:
    """One line where options of GPUs were given."""
    if given:
        log.warning("this backend has no use for -ngl and other options of GPUs: everything runs on the CPU")


def source_path(host: Host, path: Path) -> Path:
    """The file named; where there is none but one of that name as `convert` names its files, that one."""
    if not path.exists():
        for writer in host.writers.values():
            other = path.with_suffix(writer.suffix) if writer.suffix else path
            if other.is_file():
                log.warning("there is no %s; %s is taken", path, other)
                return other
    return path


def adapters(given: list[str] | None) -> list[str]:
    """Each is one path, or several with commas, as an older program takes them. Raises BestiaryError for an empty
    one."""
    found = [path for text in given or () for path in
             ([text] if "," not in text or Path(text).exists() else map(str.strip, text.split(",")))]
    if "" in found:
        raise BestiaryError("--lora names no adapter: a path is empty")
    return found


def vocabulary_path(path: Path | None) -> Path | None:
    """Where a folder is named that holds a tokenizer and no model: the tokenizer in it."""
    if path is not None and path.is_dir() and not (path / "config.json").exists():
        return next((path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()), path)
    return path


def max_tokens(predict: int) -> int:
    """What -n says. Raises BestiaryError below -2."""
    if predict < -2:
        raise BestiaryError(f"-n {predict}; a number of tokens, -1 or -2 is wanted")
    return max(predict, -1)


def sampling(*, top_k: int, seed: int | None, samplers: str | None, **others: float) -> Sampling:
    """Sampling by the conventions of command lines: a top_k or seed below 0 is none, samplers are named in one text."""
    from bestiary.sampling import CHAIN, Sampling

    return Sampling(top_k=max(top_k, 0), seed=None if seed is None or seed < 0 else seed,
                    samplers=CHAIN if samplers is None else sampler_names(samplers), **others)  # type: ignore[arg-type]


def sampler_names(text: str) -> tuple[str, ...]:
    """ "penalties;top-k;temp" -> the samplers' names."""
    names = [name.strip().lower().replace("-", "_") for name in re.split("[;,]", text) if name.strip()]
    return tuple(SAMPLER_NAMES.get(name, name) for name in names)


def numbers(text: str, option: str, least: int) -> Sequence[int]:
    """ "1,2" -> (1, 2), each at least `least`."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise BestiaryError(f"{option} {text}: a number or several with commas are wanted") from None
    if any(number < least for number in found):
        raise BestiaryError(f"{option} {text}: {least} or more is wanted")
    return found


def usable(threads: int | None, option: str) -> int | None:
    """As many threads as asked for, or as CPUs can be used."""
    from bestiary.readahead import usable_cpus

    have = usable_cpus()
    if threads is None or threads <= have:
        return threads
    log.warning("%s %d: there are %d CPUs to use, so %d threads run", option, threads, have, have)
    return have


def whole(text: str | None) -> int | None:
    """The number that a backend gives in words, or None."""
    return int(text) if text is not None and text.isdigit() else None


def clean(text: str) -> str:
    """A text of the command line; bytes that are no UTF-8 become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def text_of(file: Path, as_it_is: bool = False) -> str:
    """The text of a file; - is stdin. Ends of lines become those of Unix, unless it is to stay as it is."""
    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise BestiaryError(f"cannot read {file}: {error.strerror}") from None
    try:
        text = data.decode("utf-8")
        return text if as_it_is else text.replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise BestiaryError(f"{file} is no UTF-8 text: byte {error.start} is {data[error.start]:#04x}") from None
