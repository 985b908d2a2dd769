"""The command `bestiary`: finds what is asked for, imports that alone, calls it, and turns errors into one line."""

from __future__ import annotations

import ast
import contextlib
import difflib
import errno
import functools
import inspect
import io
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from bestiary import BestiaryError, __version__
from bestiary.cli import terminal
from bestiary.cli.not_here import WORDS
from bestiary.commands import BUILT_IN
from bestiary.discovery import OWN
from bestiary.errors import Terminated, one_line
from bestiary.guard import PASSING, calling, whose_memory
from bestiary.host import Host, HostSettings
from bestiary.named_function import named_function
from bestiary.registry import Origin, normal

GRACE = 5.0
"""Seconds that threads have at the end to finish what they do."""

SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda name: name.replace("_", "-"),  # --top_k is --top-k
    "max_content_width": 120,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit status: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C. argv:
    None for the program's own; then the program is about to end."""
    status = _main(list(sys.argv[1:] if argv is None else argv))
    if argv is None and staying():
        threading.Thread(target=_end, args=(status,), daemon=True).start()
    return status


def staying() -> list[str]:
    """The threads that a program waits for at its end; none of ours is left by then."""
    return [thread.name for thread in threading.enumerate()
            if not thread.daemon and thread is not threading.main_thread()]


def _end(status: int) -> None:
    """Ends the program where a plugin's thread keeps it from ending."""
    time.sleep(GRACE)
    if names := staying():
        _say(one_line(f"bestiary: thread {', '.join(names)} of a plugin still runs; the program ends without it"))
        os._exit(status)


def _main(given: list[str]) -> int:
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed; what is said goes nowhere
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - it lives as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character shows "?"
            stream.reconfigure(errors="replace")
    with _told_to_end(), _log_to_stderr():
        try:
            status = _run(given)
            sys.stdout.flush()
            return status
        except BestiaryError as error:
            return _fail(str(error), 1)
        except MemoryError as error:
            where = f" ({who})" if (who := whose_memory(error)) else ""
            return _fail(f"out of memory{where}: a smaller type, context or model needs less", 1)
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:
            # Whoever read our output has gone.
            _forget(sys.stdout)
            return 1
        except OSError as error:
            if error.errno != errno.ENOSPC or error.filename is not None:
                raise
            _forget(sys.stdout)
            return _fail(f"cannot write the output: {error.strerror}", 1)


def _forget(stream: TextIO | None) -> None:
    """What is still buffered goes nowhere, so that the interpreter's last flush does not complain."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[union-attr]


@contextlib.contextmanager
def _told_to_end() -> Iterator[None]:
    """Meanwhile the signals that end the program raise; afterwards they do what they did before."""
    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # in another thread than the first
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # nohup asks to go on
                before[number] = signal.signal(number, _terminated)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminated(number: int, frame: object) -> None:
    raise Terminated(128 + number)  # unlike the default it lets everyone take back what is half done


def _run(argv: list[str]) -> int:
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback(invoke_without_command=True, context_settings=SETTINGS)(bestiary)
    try:
        who = "the command line"
        chosen, argv = take_plugin_options(argv)
        host = Host(HostSettings.from_environment(chosen.files, chosen.prefer))
        if argv and not argv[0].startswith("-"):
            refuse(argv[0], argv[1:])
            with terminal.aside("--json" in argv):  # plugins are imported to know the commands
                target, who = target_of(host, argv[0])
            app.command(argv[0])(command(target, who))
        elif argv != ["--version"]:  # a listing: what stands in the sources is enough
            say_what_is_hidden(host)
            for name, target in targets(host).items():
                app.command(name, short_help=first_line(target) or "")(lambda: None)
        with calling(who, "say its options"):
            parser = typer.main.get_command(app)
        if argv and not argv[0].startswith("-"):
            refuse_cut(parser, argv)
        context = parser.make_context("bestiary", argv or ["--help"], obj=host)
        with context:
            context.command.invoke(context)
    except typer.Exit as end:
        return int(end.exit_code)
    except typer.Abort:
        return 130
    except Exception as error:
        # The parser's own exceptions; their class is public in no version of typer that we can rely on.
        message: Callable[[], str] | None = getattr(error, "format_message", None)
        if message is None:
            raise
        where = getattr(error, "ctx", None)
        path = where.command_path if where else "bestiary"
        return _fail(f"{' '.join(message().split())} (see `{path} --help`)", 2)
    return 0


def bestiary(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    plugin: Annotated[list[Path] | None, typer.Option(
        "--plugin", metavar="FILE", help="Load a one-file plugin. With any command; may be repeated.")] = None,
    prefer: Annotated[list[str] | None, typer.Option(
        "--prefer", metavar="DIST", help="Distribution that wins where two give one name. With any command.")] = None,
) -> None:
    """Converts, quantizes and runs large language models on the CPU."""
    if version:
        print(f"bestiary {__version__}")
        raise typer.Exit


@dataclass(frozen=True)
class PluginOptions:
    files: tuple[str, ...]
    prefer: tuple[str, ...]


def take_plugin_options(argv: Sequence[str]) -> tuple[PluginOptions, list[str]]:
    """--plugin and --prefer, wherever they stand before "--", and the rest: which commands there are depends on them,
    so they are read before the command line is parsed."""
    taken: dict[str, list[str]] = {"--plugin": [], "--prefer": []}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        if word == "--":
            return _options(taken), [*rest, word, *words]
        if option not in taken:
            rest.append(word)
        elif equals:
            taken[option].append(value)
        elif (following := next(words, None)) is not None:
            taken[option].append(following)
        else:
            raise WrongUsage(f"{option} wants a value")
    return _options(taken), rest


def refuse(name: str, words: Sequence[str]) -> None:
    """Raises WrongUsage for an option of old command lines that the command has not, with what to do instead. It is
    looked for before parsing: a parser takes -md for an -m with the value d."""
    known = WORDS.get(name, {})
    for word in words:
        if word == "--":
            return
        if word.startswith("-") and (sentence := known.get(word.partition("=")[0].replace("_", "-"))):
            raise WrongUsage(f"{word.partition('=')[0]}: {sentence}")


def refuse_cut(parser: Any, argv: Sequence[str]) -> None:
    """Raises WrongUsage for an unknown word like -fa, which the parser would cut into -f with the value a. Values are
    left alone, also negative numbers and -n256; so are several flags of one letter in one word."""
    chosen: Any = parser.commands[argv[0]]
    options = {option: param for param in chosen.params for option in (*param.opts, *param.secondary_opts)}
    flags = {option[1] for option, param in options.items() if len(option) == 2 and getattr(param, "is_flag", False)}
    words = iter(argv[1:])
    for word in words:
        if word == "--":
            return
        name = word.partition("=")[0].replace("_", "-")
        if name in options:
            if not getattr(options[name], "is_flag", False) and "=" not in word:
                next(words, None)
        elif re.fullmatch("-[A-Za-z][A-Za-z-]+", name) and not set(name[1:]) <= flags | {"h"}:
            raise WrongUsage(f"no such option: {name}")


def _options(taken: Mapping[str, Sequence[str]]) -> PluginOptions:
    return PluginOptions(tuple(taken["--plugin"]), tuple(taken["--prefer"]))


def targets(host: Host) -> dict[str, str]:
    """All commands, ours first: name -> "module:function"."""
    return {**BUILT_IN, **{name: target for name, target in host.commands.items() if name not in BUILT_IN}}


def target_of(host: Host, name: str) -> tuple[str, str]:
    """The command's "module:function", and whose it is in words. Raises BestiaryError where there is none, or two."""
    say_what_is_hidden(host)
    providers = host.commands.providers(name)
    if name not in BUILT_IN and not providers:
        known = sorted(targets(host))
        close = difflib.get_close_matches(name, known, 1)
        raise WrongUsage(f"unknown command {name!r}; "
                         + (f"do you mean {close[0]}?" if close else f"known: {', '.join(known)}"))
    if name not in BUILT_IN:
        entry = host.commands.provider(name)
        return entry.item, f"command {name!r} of {entry.origin}"
    prefer = [normal(distribution) for distribution in host.settings.prefer]
    ways = {OWN: BUILT_IN[name], **{entry.origin.distribution: entry.item for entry in providers}}
    chosen = min(ways, key=lambda way: prefer.index(normal(way)) if normal(way) in prefer else len(prefer))  # else ours
    return ways[chosen], f"command {name!r}" + (f" of {chosen}" if providers else "")


def hidden_commands(host: Host) -> list[tuple[Origin, str]]:
    """Commands of plugins that have the name of one of ours, which runs: an installation takes nobody's `run` away.
    Whose each is, and the sentence about it."""
    entries = [entry for name in BUILT_IN for entry in host.commands.providers(name)
               if {OWN, normal(entry.origin.distribution)}.isdisjoint(map(normal, host.settings.prefer))]
    return [(entry.origin, f"command {entry.name!r} of {entry.origin} is not used: one of that name is built in; "
             f"choose with --prefer {entry.origin.distribution} or --prefer {OWN}") for entry in entries]


def say_what_is_hidden(host: Host) -> None:
    for origin, sentence in hidden_commands(host):
        host.say_clash([origin], sentence)


def command(target: str, who: str) -> Callable[..., Any]:
    """The function that "module:function" names. Raises BestiaryError where it is not there; of a plugin it is called
    under guard, but may leave as ours do: by SystemExit, by what typer raises, by wrong usage."""
    found = named_function(target, who)
    if target in BUILT_IN.values():
        return found

    @functools.wraps(found)
    def guarded(*given: Any, **named: Any) -> None:
        try:
            result = found(*given, **named)
        except (SystemExit, typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if hasattr(error, "format_message"):  # the parser's own, as above
                raise
            with calling(who, "run"):
                raise
        if inspect.iscoroutine(result):
            result.close()  # else Python itself says that nobody awaited it
            raise BestiaryError(f"{who} is async; a command is called, and done when it returns")

    return guarded


def first_line(target: str) -> str | None:
    """The first line of the docstring of "module:function", without importing the module: what a plugin's command needs
    may take a second to import."""
    module, _, function = target.partition(":")
    try:
        spec = find_spec(module)
        if spec is not None and spec.origin is not None:
            for node in ast.parse(Path(spec.origin).read_text("utf-8")).body:
                if isinstance(node, ast.FunctionDef) and node.name == function:
                    return (ast.get_docstring(node) or "").partition("\n")[0]
    except PASSING:
        raise
    except BaseException:  # a plugin's package may do anything when it is looked up
        return None
    return None


def _fail(message: str, status: int) -> int:
    _say(f"bestiary: error: {one_line(message)}")
    return status


def _say(line: str) -> None:
    """To stderr, as it is at this moment: a progress bar replaces it. That nobody listens, or that the disk of a log is
    full, stops no work."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        _forget(sys.__stderr__)


@contextlib.contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Warnings of the library as single lines."""
    handler = _Lines()
    handler.setFormatter(logging.Formatter("bestiary: %(message)s"))
    logger = logging.getLogger("bestiary")
    logger.addHandler(handler)
    before, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


class WrongUsage(Exception):
    """What the parser cannot see; reported like its own errors."""

    def format_message(self) -> str:
        return str(self)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _say(one_line(self.format(record)))
