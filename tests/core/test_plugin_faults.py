"""What a plugin's items may do wrong once they are called, and who is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from bestiary.encoding import Encoding
from bestiary.errors import BestiaryError, Terminated
from bestiary.guard import calling, printing_to_stderr
from bestiary.host import Host, HostSettings
from bestiary.inspection import inspect
from bestiary.model import choose_backend, load
from bestiary.saving import save_as
from bestiary_plugins.loaders.gguf_types import TENSOR_CODES, encoding_of

HEADER = """
    from bestiary.plugin import *

    class Odd(Loader):
        name = "odd"
        def recognise(self, path):
            return 100 if path.suffix == ".odd" else 0
        def open(self, path, host):
            raise SystemExit(8)
    class Family(Architecture):
        name, namings, ignorable = "wyvern", {"canonical": ()}, (".*",)
        def claims(self, config, tokenizer):
            return 100
        def normalise(self, config, shapes):
            return dict(config)
        def graph(self, config, context):
            raise ZeroDivisionError("no graph")
        def example_config(self):
            return {}
    class Way(Backend):
        name, rank = "way", 1000
        def compile(self, *given, **named):
            raise RuntimeError("cannot\\npack")
    class Fixed(Quantizer):
        name, encoding = "fixed", F32
        def quantize(self, rows, importance=None):
            return rows.view("u1")
"""


def plugin(folder: Path, code: str, name: str = "mine.py") -> Path:
    file = folder / name
    file.write_text(dedent(HEADER) + dedent(code))
    return file


def host_of(*files: Path, entry_points: bool = True) -> Host:
    return Host(HostSettings(names=(), files=tuple(map(str, files))), entry_points)


def giving(kind: str, item: str) -> str:
    return f"\n@hookimpl\ndef bestiary_{kind}(): return [{item}]\n"


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, where stdout is a file descriptor."""
    return subprocess.run([sys.executable, "-m", "bestiary", *map(str, words)], capture_output=True, text=True,
                          env={**os.environ, "BESTIARY_PLUGINS": ""})


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    path = tmp_path / "model.odd"
    path.write_bytes(b"odd")
    return path


@pytest.fixture
def stories(data: Path) -> Path:
    return data / "tiny-llama" / "stories260K.bin"


# Backends


@pytest.mark.parametrize(("answer", "words"), [
    ("raise SystemExit(3)", "SystemExit: 3"), ("raise RuntimeError('a\\nb')", "RuntimeError: a b"),
    ("return 0", "int 0, not None or the reason"), ("return ''", "does not say why"), ("return 'a\\nb'", "a b")])
def test_a_backend_that_cannot_say_whether_it_runs_does_not_and_stands_in_nobodys_way(
        tmp_path: Path, caplog: pytest.LogCaptureFixture, answer: str, words: str) -> None:
    code = f"class Bad(Way):\n    def available(self): {answer}\n"
    host = host_of(plugin(tmp_path, code + giving("backends", "Bad()")))
    assert choose_backend(host, None).name != "way"
    (line,) = [record.getMessage() for record in caplog.records if "backend way " in record.getMessage()]
    assert words in line and "\n" not in line
    with pytest.raises(BestiaryError, match="backend way does not run here: ") as caught:
        choose_backend(host, "way")
    assert words in str(caught.value)


def test_a_backend_whose_rank_is_no_number_is_set_aside(tmp_path: Path) -> None:
    host = host_of(plugin(tmp_path, giving("backends", "Way()") + "Way.rank = 'high'\n"))
    assert "way" not in host.backends
    assert host.report()[-1].reason == "backend way: its rank is str 'high'"


def test_a_backend_that_fails_to_compile_is_named_and_keeps_its_traceback(
        tmp_path: Path, stories: Path, caplog: pytest.LogCaptureFixture) -> None:
    host = host_of(plugin(tmp_path, giving("backends", "Way()")))
    with pytest.raises(RuntimeError, match="cannot"):
        load(stories, host=host)
    assert caplog.records[-1].getMessage() == \
        f"backend way of mine.py failed to prepare {stories}: RuntimeError: cannot pack"


def test_a_backend_that_gives_no_plan_is_an_error(tmp_path: Path, stories: Path) -> None:
    code = "class Bad(Way):\n    def compile(self, *given, **named): return None\n"
    host = host_of(plugin(tmp_path, code + giving("backends", "Bad()")))
    with pytest.raises(BestiaryError, match="backend way of mine.py prepared .* and gave NoneType None, not a Plan"):
        load(stories, host=host)


# What items hold


@pytest.mark.parametrize(("kind", "item", "attribute", "value", "words"), [
    ("architectures", "Family", "pre_tokenizers", "{'x': 1}", "{'x': 1} among its pre_tokenizers is no name and pre-t"),
    ("architectures", "Family", "pre_tokenizers", "{'x': PreTokenizer(['a'])}", "among its pre_tokenizers is no name"),
    ("architectures", "Family", "pre_tokenizers", "{1: PreTokenizer(('a',))}", "among its pre_tokenizers is no name"),
    ("architectures", "Family", "namings", "{'meta': 5}", "dict {'meta': 5} among its namings is no name and tuple"),
    ("architectures", "Family", "namings", "{'meta': (5,)}", "among its namings is no name and tuple of rules"),
    ("architectures", "Family", "namings", "{'meta': (Rule(1, 'a'),)}", "among its namings is no name and tuple of"),
    ("architectures", "Family", "namings", "{'meta': (Rule('a', 'a', 7),)}", "among its namings is no name and tuple"),
    ("architectures", "Family", "ignorable", "('(',)", "str '(' among its ignorable is no regular expression"),
    ("architectures", "Family", "keys", "('a',)", "str 'a' among its keys is no key"),
    ("architectures", "Family", "keys", "(Key('a', 'b', None),)", "among its keys is no key"),
    ("architectures", "Family", "rank_lists", "(1,)", "int 1 among its rank_lists is no rank list"),
    ("architectures", "Family", "rank_lists", "(RankList('9', 'a', (), 'b', 'c'),)", "is no rank list"),
    ("architectures", "Family", "templates", "{'x': 'y'}", "{'x': 'y'} among its templates is no name and template"),
    ("architectures", "Family", "prompts", "{'x': 1}", "tuple ('x', 1) among its prompts is no pair of texts"),
    ("quantizers", "Fixed", "keeps", "('output.weight',)", "among its keeps is no pair of a pattern and a quantizer"),
    ("quantizers", "Fixed", "keeps", "(('(', 'f32'),)", "among its keeps is no pair of a pattern and a quantizer"),
    ("quantizers", "Fixed", "retired", "{'a': 1}", "tuple ('a', 1) among its retired is no pair of texts"),
    ("quantizers", "Fixed", "aliases", "('two words',)", "str 'two words' among its aliases is no word"),
    ("quantizers", "Fixed", "encoding", "Encoding('e', 0, (4,))", "is no encoding with a name and whole sizes"),
    ("quantizers", "Fixed", "encoding", "Encoding('e', 32, 18)", "is no encoding with a name and whole sizes"),
    ("loaders", "Odd", "name", "'\\x1b[31mred\\x07'", "has the name '\\x1b[31mred\\x07'; a word is needed"),
    ("loaders", "Odd", "name", "'odd\\n'", "has the name 'odd\\n'; a word is needed"),
])
def test_what_an_item_holds_is_checked_before_anybody_uses_it(
        tmp_path: Path, kind: str, item: str, attribute: str, value: str, words: str) -> None:
    host = host_of(plugin(tmp_path, giving(kind, f"{item}()") + f"{item}.{attribute} = {value}\n"), entry_points=False)
    (report,) = host.report()
    assert words in (report.reason or "") and not report.provides
    assert not host.pre_tokenizers and not host.rank_lists and not host.templates


def test_an_item_that_is_right_passes_the_checks(tmp_path: Path) -> None:
    code = """
        Family.namings = {"meta": (Rule("a.{}", ("b.{}", "c.{}")),)}
        Family.keys = (Key("a", "{arch}.a", "u32", to_file=int),)
        Family.pre_tokenizers = {"x": PreTokenizer(("a",))}
        Family.rank_lists = (RankList(9, "x", ("<s>",), "<s>", "<s>"),)
        Family.templates = {"turns": TurnTemplate("turns", "", "", "", "")}
        Family.prompts = {"a.txt": "text"}
        Fixed.keeps, Fixed.retired = (("output.weight", "f16"),), {"old": "it was given up, in words"}
    """
    host = host_of(plugin(tmp_path, giving("architectures", "Family()") + giving("quantizers", "Fixed()")
                          + dedent(code)), entry_points=False)
    assert host.report()[0].reason is None
    assert list(host.pre_tokenizers) == ["x"] and list(host.templates) == ["turns"]


# Loaders and architectures


def test_a_loader_that_ends_the_program_is_an_error_that_names_it(tmp_path: Path, odd: Path) -> None:
    file = plugin(tmp_path, giving("loaders", "Odd()"))
    with pytest.raises(BestiaryError, match="loader odd of mine.py failed to open .*: SystemExit: 8"):
        host_of(file).open(odd)
    done = run("inspect", odd, "--plugin", file)
    assert done.returncode == 1 and done.stderr.startswith("bestiary: error: loader odd of mine.py failed to open ")


def test_a_loader_that_gives_no_checkpoint_is_an_error_that_names_it(tmp_path: Path, odd: Path) -> None:
    code = "class Bad(Odd):\n    def open(self, path, host): return None\n"
    with pytest.raises(BestiaryError, match="loader odd of mine.py opened .* and gave NoneType None, not a Checkpoint"):
        host_of(plugin(tmp_path, code + giving("loaders", "Bad()"))).open(odd)


def test_a_loader_that_fails_is_named_in_a_line_and_keeps_its_traceback(tmp_path: Path, odd: Path) -> None:
    code = "class Bad(Odd):\n    def open(self, path, host): raise RuntimeError('open failed\\nbadly')\n"
    done = run("inspect", odd, "--plugin", plugin(tmp_path, code + giving("loaders", "Bad()")))
    first, second, *_ = done.stderr.splitlines()
    assert first == f"bestiary: loader odd of mine.py failed to open {odd}: RuntimeError: open failed badly"
    assert second.startswith("Traceback") and done.returncode == 1 and done.stdout == ""


@pytest.mark.parametrize("does", [load, inspect, lambda path, host: save_as(path, path.with_name("out"), None, host)])
@pytest.mark.parametrize("method", ["normalise", "graph", "derived"])
def test_an_architecture_that_fails_is_named_in_a_line(
        tmp_path: Path, odd: Path, caplog: pytest.LogCaptureFixture, does: Callable[..., object], method: str) -> None:
    code = f"""
        from types import SimpleNamespace
        from bestiary.checkpoint import Checkpoint
        class Made(Odd):
            def open(self, path, host): return Checkpoint(path, {{"max_position_embeddings": 8}}, {{}}, "canonical")
        class Bad(Family):
            def claims(self, config, tokenizer): return 100 if len(config) == 1 else 0
            def graph(self, config, context): return SimpleNamespace(weights={{}})
            def {method}(self, *given): raise ZeroDivisionError("x")
    """
    host = host_of(plugin(tmp_path, dedent(code) + giving("loaders", "Made()") + giving("architectures", "Bad()")))
    with pytest.raises(ZeroDivisionError):
        does(odd, host=host)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"architecture wyvern of mine.py failed to read {odd}: ZeroDivisionError: x"


def test_what_is_no_fault_of_a_plugin_passes_its_guard(caplog: pytest.LogCaptureFixture) -> None:
    for kind in (BestiaryError, KeyboardInterrupt, MemoryError, Terminated):
        with pytest.raises(kind), calling("it", "do that"):
            raise kind
    assert not caplog.records


def test_a_termination_while_a_plugin_is_called_ends_the_program(tmp_path: Path, odd: Path) -> None:
    code = "import os, signal\nclass Slow(Odd):\n    def open(self, path, host): os.kill(os.getpid(), signal.SIGTERM)\n"
    done = run("inspect", odd, "--plugin", plugin(tmp_path, code + giving("loaders", "Slow()")))
    assert done.returncode == 128 + signal.SIGTERM and done.stderr == ""


def test_threads_that_overlap_leave_stdout_as_it_was() -> None:
    before, inside, leave = sys.stdout, threading.Event(), threading.Event()

    def other() -> None:
        with printing_to_stderr():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with printing_to_stderr():
        thread.start()
        inside.wait(10)
    assert sys.stdout is sys.stderr  # the other one is still in there
    leave.set()
    thread.join()
    assert sys.stdout is before


# Hooks


def test_an_exception_that_cannot_be_told_is_told_by_its_class(tmp_path: Path) -> None:
    code = "class Mute(Exception):\n    def __str__(self): raise SystemExit(9)\nraise Mute\n"
    assert host_of(plugin(tmp_path, code), entry_points=False).report()[0].reason == "Mute"


def test_an_async_hook_is_set_aside_in_one_line(tmp_path: Path) -> None:
    done = run("plugins", "--plugin", plugin(tmp_path, "@hookimpl\nasync def bestiary_loaders(): return []\n"))
    assert done.returncode == 0
    assert done.stderr == ("bestiary: plugin 'mine' of mine.py is set aside: bestiary_loaders is async; a hook is "
                           "called and gives its items; see `bestiary plugins`\n")


# Commands


@pytest.mark.parametrize(("target", "words"), [
    ("no_such_module:zz", "command 'hello' of mine.py: there is no module no_such_module"),
    ("json.absent:zz", "command 'hello' of mine.py: there is no module json.absent"),
    ("json:absent", "command 'hello' of mine.py: module json has no function absent"),
    ("json:__name__", "command 'hello' of mine.py: module json has no function __name__"),
    ("bestiary_leaves:zz", "command 'hello' of mine.py failed to load: SystemExit: 3")])
def test_a_command_that_is_not_there_is_an_error_in_a_line(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, words: str) -> None:
    (tmp_path / "bestiary_leaves.py").write_text("raise SystemExit(3)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", ""))))
    file = plugin(tmp_path, f"@hookimpl\ndef bestiary_commands(): return {{'hello': {target!r}}}\n")
    done = run("hello", "--plugin", file)
    assert (done.returncode, done.stderr) == (1, f"bestiary: error: {words}\n")


# JSON alone on stdout

NOISE = """
    import os, subprocess, sys
    def noise(what):
        print(what, "by print")
        os.write(1, f"{what} by write\\n".encode())
        sys.__stdout__.write(f"{what} by __stdout__\\n")
        subprocess.run(["echo", what, "by a child"])
    noise("import")
    class Loud(Odd):
        def recognise(self, path):
            noise("recognise")
            return super().recognise(path)
        def open(self, path, host):
            noise("open")
            return host.open(path.with_suffix(".bin"))
    @hookimpl
    def bestiary_loaders():
        noise("hook")
        return [Loud()]
    @hookimpl
    def bestiary_commands():
        noise("commands")
        return {}
"""


@pytest.mark.parametrize("words", [
    ("inspect", "{}", "--json"), ("tokenize", "-m", "{}", "-p", "Once", "--json"), ("plugins", "--json")])
def test_stdout_is_the_json_alone_however_a_plugin_writes_to_it(
        tmp_path: Path, stories: Path, words: tuple[str, ...]) -> None:
    odd = tmp_path / "stories260K.odd"
    odd.write_bytes(b"odd")
    for name in ("stories260K.bin", "tokenizer.bin", "tok512.bin"):
        if (stories.parent / name).exists():
            (tmp_path / name).symlink_to(stories.parent / name)
    done = run(*(word.format(odd) for word in words), "--plugin", plugin(tmp_path, NOISE))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    for how in ("print", "write", "__stdout__", "a child"):
        assert f"import by {how}" in done.stderr and f"hook by {how}" in done.stderr
        assert words[0] == "plugins" or f"open by {how}" in done.stderr


# Encodings of one name


def test_of_encodings_with_one_name_the_file_takes_the_one_that_fits_it(tmp_path: Path, host: Host) -> None:
    code = TENSOR_CODES["q4_0"]
    own = encoding_of(code, host.encodings, "tensor a")
    other = giving("quantizers", "Fixed()") + "Fixed.encoding = Encoding('q4_0', 64, (36,), decoder=len)\n"
    known = host_of(plugin(tmp_path, other)).encodings
    assert encoding_of(code, known, "tensor a") == own
    with pytest.raises(BestiaryError, match="encoding 'q4_0' is provided by bestiary .* and by mine.py"):
        known["q4_0"]
    same = plugin(tmp_path, other.replace("64, (36,)", "32, (18,)"), "same.py")
    with pytest.raises(BestiaryError, match="encoding 'q4_0' is provided by bestiary .* and by same.py"):
        encoding_of(code, host_of(same).encodings, "tensor a")
    with pytest.raises(BestiaryError, match="the encoding of that name here has 64 and 36"):
        encoding_of(code, {"q4_0": Encoding("q4_0", 64, (36,))}, "tensor a")
