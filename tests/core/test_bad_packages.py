"""Installed packages of third parties that are bad in every way we know: all commands go on, and say whose fault it is.

What no guard helps against is not tried: os._exit, a crash in compiled code, changes to our own modules. A plugin runs
with all rights of its user.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from bestiary import __version__ as VERSION
from bestiary_plugins.demo.command import model as demo_model
from tests.installing import PACKAGES, Completed, Place

FOLDERS = tuple(sorted(PACKAGES.glob("bad-*")))
HEADER = """
from bestiary.plugin import *
class Family(Architecture):
    name, namings = "wyvern", {}
    def claims(self, config, tokenizer): return 0
    def normalise(self, config, shapes): return dict(config)
    def graph(self, config, context): raise NotImplementedError
    def example_config(self): return {}
class Odd(Loader):
    name = "odd"
    def recognise(self, path): return 0
    def open(self, path, host): raise NotImplementedError
class Way(Backend):
    name, rank = "way", 99
    def available(self): return "it is a test"
    def compile(self, *given, **named): raise NotImplementedError
def nothing(): return []
bestiary_loaders = hookimpl(nothing, specname="bestiary_loaders")
"""


def gives(kind: str, items: str) -> str:
    return f"@hookimpl\ndef bestiary_{kind}(): return {items}\n"


EQUALITY = """
class Rule(PreTokenizer):
    def __eq__(self, other): raise SystemExit(6)
    def __hash__(self): raise SystemExit(7)
class Turns(TurnTemplate):
    def __eq__(self, other): raise SystemExit(8)
class Bad(Family):
    name = "equality"
    pre_tokenizers = {"equality": Rule(("a",)), "llama-bpe": Rule(("a",))}
    templates = {"equality": Turns("equality", "", "", "", ""), "llama-2": Turns("llama-2", "", "", "", "")}
""" + gives("architectures", "[Bad()]")


@dataclass(frozen=True)
class Bad:
    """code: of the module. reason: why it is set aside; None for what is named without that. said: a part of the line
    about it; None for what nobody notices, because nothing happens."""

    code: str
    reason: str | None = None
    said: str | None = None


TABLE = {
    "interrupt": Bad("raise KeyboardInterrupt", "it raises KeyboardInterrupt, and nobody pressed Ctrl-C"),
    "recursion": Bad("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
    "base": Bad("class Own(BaseException): pass\nraise Own('a\\n\\x1b[31mb')", "Own: a \\x1b[31mb"),
    "mute": Bad("class Mute(Exception):\n    def __str__(self): raise SystemExit(9)\nraise Mute", "Mute"),
    "no-hook": Bad("del nothing, bestiary_loaders", "it has no hook"),
    "endless": Bad("class Many:\n    def __iter__(self):\n        while True: yield Odd()\n"
                   + gives("loaders", "Many()"), "bestiary_loaders gave more than 10000 items"),
    "property": Bad("class Bad(Odd):\n    @property\n    def name(self): raise SystemExit('no name')\n"
                    + gives("loaders", "[Bad()]"), "SystemExit: no name"),
    "encodings": Bad("class Bad(Odd):\n    encodings = 'q4',\n" + gives("loaders", "[Bad()]"),
                     "loader odd: str 'q4' among its encodings is no encoding"),
    "sizes": Bad("class Bad(Odd):\n    encodings = [Encoding('own', 0, (1,), decoder=len)]\n"
                 + gives("loaders", "[Bad()]"), "among its encodings is no encoding with a name and whole sizes"),
    "unreadable": Bad("class Bad(Odd):\n    encodings = [Encoding('own', 2, (1,), Layout((Bits(4, (0, 9), 8),), 2, "
                      "Factor('f16', Bits(16, (0,), 8))))]\n" + gives("loaders", "[Bad()]"),
                      "loader odd: its encoding cannot be read: "),
    "repr": Bad("class Bad:\n    def __repr__(self): raise OSError\n" + gives("loaders", "[Bad()]"),
                "bestiary_loaders gave an object of Bad, not an instance of Loader"),
    "module-getattr": Bad("def __getattr__(name): raise SystemExit(name)\n", "SystemExit: "),
    "wrong-command": Bad(gives("commands", "{'Hello you': 'a:b'}"), "'Hello you'"),
    # What is as it was before, and what nobody notices
    "streams": Bad("import io, sys\nsys.stdout = sys.stderr = io.StringIO()\nraise OSError", "OSError"),
    "warnings": Bad("import warnings\nwarnings.simplefilter('error')\n"),
    "signals": Bad("import signal\nsignal.signal(signal.SIGINT, lambda *given: None)\n"),
    "atexit": Bad("import atexit\natexit.register(lambda: 1 / 0)\n"),
    "thread": Bad("import threading, time\nthreading.Thread(target=time.sleep, args=(99,), daemon=True).start()\n"),
    # What fails when it is called: it counts as not able, and is named
    "claims": Bad("class Bad(Family):\n    def claims(self, config, tokenizer): raise SystemExit(4)\n"
                  + gives("architectures", "[Bad()]"), said="could not say whether to claim the model: SystemExit: 4"),
    "recognise": Bad("class Bad(Odd):\n    def recognise(self, path): raise RuntimeError\n"
                     + gives("loaders", "[Bad()]"), said="could not say whether to recognise"),
    "available": Bad("class Bad(Way):\n    def available(self): raise SystemExit(5)\n" + gives("backends", "[Bad()]"),
                     said="cannot say whether it does: SystemExit: 5"),
    "equality": Bad(EQUALITY),
}
"""Each is a distribution of its own, bad-NAME, with a module of its own."""
CLASHES = ("architecture 'llama'", "loader 'huggingface'", "writer 'gguf'", "quantizer 'q4_1'", "backend 'numpy'",
           "encoding 'q5_1'", "chat template 'vicuna-v0'", "pre-tokenizer 'llama-bpe'", "rank list of size '128000'")
COMMAND_CLASH = ("command 'run' of bad-clash 1.0 is not used: one of that name is built in; "
                 "choose with --prefer bad-clash or --prefer bestiary")
REASONS = {
    "bad-import": "ModuleNotFoundError: No module named 'no_such_module'",
    "bad-exit": "SystemExit: 3",
    "bad-spelling": "bestiary_loadrs is no hook; known: bestiary_architectures",
    "bad-newer": "it needs version 99 of the plugin interface",
    "bad-second": "OSError: the second one is missing",
    "bad-types": "bestiary_loaders gave Sixteen ",
    **{f"bad-{name}": bad.reason for name, bad in TABLE.items() if bad.reason is not None},
}
AT_IMPORT = {name for name in REASONS if name not in {
    "bad-second", "bad-types", "bad-endless", "bad-property", "bad-repr", "bad-encodings", "bad-sizes",
    "bad-unreadable"}}
"""What is noticed by every command; the others only by those that ask for what they give."""


ALL = (*(folder.name for folder in FOLDERS), *(f"bad-{name}" for name in TABLE))
SAID: dict[str, tuple[str, ...]] = {
    **{name: (reason,) for name, reason in REASONS.items()},
    **{f"bad-{name}": (bad.said,) for name, bad in TABLE.items() if bad.said is not None},
    "bad-clash": ("command 'run' of bad-clash 1.0 is not used: one of that name is built in",),
    "bad-slow": (" s to import, and every command waits for it; BESTIARY_PLUGINS says which are loaded",),
}
"""What stands in the lines of `bestiary run` that name the distribution."""


def wheel(folder: Path, name: str, code: str) -> Path:
    """A distribution of one module, without the seconds that a build takes."""
    module = name.replace("-", "_")
    file = folder / f"{module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as made:
        for path, text in (
                (f"{module}.py", code),
                (f"{module}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"),
                (f"{module}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
                (f"{module}-1.0.dist-info/entry_points.txt", f"[bestiary]\n{name} = {module}\n"),
                (f"{module}-1.0.dist-info/RECORD", "")):
            made.writestr(path, text)
    return file


@pytest.fixture(scope="module")
def bad(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """All of them in one environment; one is built from its folder as pip does it."""
    folder = tmp_path_factory.mktemp("wheels")
    wheels = [wheel(folder, f"bad-{name}", HEADER + dedent(bad.code)) for name, bad in TABLE.items()]
    wheels += [wheel(folder, built.name, (built / f"{built.name.replace('-', '_')}.py").read_text("utf-8"))
               for built in FOLDERS[1:]]
    done = place.python_words("-m", "pip", "install", "--no-deps", "--no-index", "--quiet", *wheels)
    assert done.returncode == 0, done.stderr
    place.pip_install(FOLDERS[0])
    return place


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model that is shipped, in one file."""
    from bestiary.host import Host, HostSettings
    from bestiary.saving import save_as

    return save_as(demo_model(), tmp_path_factory.mktemp("model") / "m.gguf", "f16", Host(HostSettings(names=()))).path


def named(done: Completed, distribution: str) -> list[str]:
    """The lines of stderr that name it."""
    return [line for line in done.stderr.splitlines()
            if line.startswith("bestiary: ") and re.search(rf"\bof {re.escape(distribution)} ", line)]


def reports(done: Completed) -> dict[str, dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return {report["distribution"]: report for report in json.loads(done.stdout)}


COMMANDS: dict[str, tuple[str, ...]] = {
    "help": ("--help",), "plugins": ("plugins",), "plugins --json": ("plugins", "--json"), "demo": ("demo",),
    "inspect": ("inspect", "MODEL", "--json"),
    "convert": ("convert", "MODEL", "--outfile", "OUT", "--outtype", "bf16"),
    "quantize": ("quantize", "MODEL", "OUT", "q8_0"),
    "run": ("run", "-m", "MODEL", "-p", "Once", "-n", "4", "--temp", "0"),
    "tokenize": ("tokenize", "-m", "MODEL", "-p", "Once", "--json"),
    "chat": ("chat", "-m", "MODEL", "-n", "4", "--chat-template", "alpaca"),
    "bench": ("bench", "-m", "MODEL", "-p", "4", "-n", "2", "-r", "1", "--json"),
    "perplexity": ("perplexity", "-m", "MODEL", "-f", "TEXT", "-c", "16", "--chunks", "1", "--json"),
}


def call(place: Place, gguf: Path, name: str, *more: str, **environment: str) -> Completed:
    """One of the commands, on the model."""
    text, out = place.folder / "text.txt", place.folder / f"{name}.gguf"
    text.write_text("Once upon a time there was a little dragon. " * 20)
    out.unlink(missing_ok=True)
    words = {"MODEL": gguf, "TEXT": text, "OUT": out}
    return place.run(*(words.get(word, word) for word in COMMANDS[name]), *more, input="Hi\n" if name == "chat" else "",
                     **environment)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_works_beside_all_of_them_and_names_each_once(bad: Place, gguf: Path, name: str) -> None:
    together = ",".join(distribution for distribution in ALL if distribution != "bad-slow")  # nobody waits for it here
    settled = ("--prefer", "bestiary") if name == "demo" else ()  # it asks for every quantizer by name
    done = call(bad, gguf, name, *settled, BESTIARY_PLUGINS=together)
    assert done.returncode == 0, done.stderr
    if "--json" in COMMANDS[name]:
        assert json.loads(done.stdout)
    asked = name.startswith("plugins")
    for distribution, reason in REASONS.items():
        lines = [line for line in named(done, distribution) if "is set aside: " in line]
        assert len(lines) == 1 or not (asked or distribution in AT_IMPORT) and not lines, (distribution, done.stderr)
        assert all(reason in line and line.endswith("; see `bestiary plugins`") for line in lines)
    assert len([line for line in done.stderr.splitlines() if "bad-clash" in line]) == (not settled), done.stderr
    assert "by print" not in done.stdout and "by print" in done.stderr and "by stderr" in done.stderr


@pytest.mark.parametrize("distribution", ALL)
def test_a_model_runs_beside_each_alone(bad: Place, gguf: Path, distribution: str) -> None:
    done = call(bad, gguf, "run", BESTIARY_PLUGINS=distribution)
    assert done.returncode == 0 and "Once" in done.stdout, done.stderr
    said = SAID.get(distribution, ())
    lines = named(done, distribution)
    assert len(lines) == len(said) and all(words in line for words, line in zip(said, lines, strict=True)), done.stderr


def test_the_listing_shows_reasons_tracebacks_clashes_and_how_long_imports_took(bad: Place) -> None:
    done = bad.run("plugins", "--verbose")
    found = reports(bad.run("plugins", "--json"))
    assert set(found) == {"bestiary", *ALL} and found["bestiary"]["reason"] is None and found["bestiary"]["provides"]
    blocks = {block.partition(" of ")[2].partition(" ")[0]: block for block in re.split(r"\n(?=\S)", done.stdout)}
    for distribution in ALL:
        reason = REASONS.get(distribution)
        assert (found[distribution]["reason"] is None) == (reason is None), found[distribution]
        if reason is not None:
            assert reason in str(found[distribution]["reason"]) and found[distribution]["provides"] == {}
            assert re.search(rf"^  reason +.*{re.escape(reason)}", blocks[distribution], re.M)
            assert "    Traceback (most recent call last):" in blocks[distribution]
    for said in CLASHES:
        assert f"  clash          {said} is provided by bestiary " in blocks["bad-clash"]
        assert f"  clash          {said} is provided by bestiary " in blocks["bestiary"]
    assert f"  clash          {COMMAND_CLASH}" in blocks["bad-clash"]
    assert COMMAND_CLASH in found["bad-clash"]["clashes"]
    assert re.search(r"bad-slow of bad-slow 1.0 \(bad_slow\), \d{4} ms", done.stdout)


def test_a_name_that_two_give_is_an_error_when_it_is_asked_for(bad: Place, gguf: Path) -> None:
    code = """
import json, sys
from bestiary import BestiaryError
from bestiary.host import Host
host, said = Host(), []
for kind, name in json.loads(sys.argv[1]):
    try:
        getattr(host, kind)[name]
    except BestiaryError as error:
        said.append(str(error))
print(json.dumps(said))
"""
    kinds = ("architectures", "loaders", "writers", "quantizers", "backends", "encodings", "templates",
             "pre_tokenizers", "rank_lists")
    asked = [(kind, said.split("'")[1]) for kind, said in zip(kinds, CLASHES, strict=True)]
    done = bad.python(code, json.dumps(asked), BESTIARY_PLUGINS="bad-clash")
    said = json.loads(done.stdout)
    assert said == [f"{clash} is provided by bestiary {VERSION} and by bad-clash 1.0; choose with --prefer bestiary or "
                    "--prefer bad-clash" for clash in CLASHES]
    (line,) = done.stderr.splitlines()  # it is named once, however many names it is
    assert line.startswith("bad-clash 1.0: some of its names are other plugins' too; ")


@pytest.mark.parametrize("name", COMMANDS)
def test_preferring_a_distribution_settles_all_clashes(bad: Place, gguf: Path, name: str) -> None:
    done = call(bad, gguf, name, "--prefer", "bestiary", BESTIARY_PLUGINS="bad-clash")
    assert done.returncode == 0 and "bad-clash" not in done.stderr, done.stderr


ITEMS = HEADER + dedent("""
    from bestiary_plugins.architectures.llama import Llama
    from bestiary_plugins.backends.numpy import NumpyBackend
    def part(what):
        def fails(self, *given, **named):
            raise SystemExit(what)
        return fails
    class Fixed(Quantizer):
        name, encoding, quantize = "fixed", Encoding("own", 32, (32,), decoder=len), part("quantize")
    class Short(Quantizer):
        name, encoding = "short", Encoding("own", 32, (32,), decoder=len)
        def quantize(self, rows, importance=None): return rows[1:].view("u1")
    @hookimpl
    def bestiary_quantizers(): return [Fixed(), Short()]
    @hookimpl
    def bestiary_architectures():
        for what in ("normalise", "graph", "derived", "layout", "wrap"):
            made = type(what, (Llama,), {"claims": lambda *given: 0, what: part(what)})()
            made.name = "bad-" + what
            yield made
    @hookimpl
    def bestiary_backends():
        for what in ("compile", "describe"):
            made = type(what, (NumpyBackend,), {"rank": -9, what: part(what)})()
            made.name = "bad-" + what
            yield made
        for what in ("forward", "new_cache", "close"):
            def compile(self, *given, what=what, **named):
                plan = NumpyBackend.compile(self, *given, **named)
                plan.__class__ = type(what, (type(plan),), {what: part(what)})
                return plan
            made = type(what, (NumpyBackend,), {"rank": -9, "compile": compile})()
            made.name = "bad-" + what
            yield made
""")


def damage(place: Place, folder: str, **files: bytes) -> None:
    """What pip would never write, and what is there all the same after a disk was full."""
    about = place.site_packages / folder
    about.mkdir()
    for name, content in files.items():
        (about / {"points": "entry_points.txt", "about": "METADATA"}[name]).write_bytes(content)


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Place]:
    yield Place(tmp_path / "place")


def test_distributions_that_pip_half_wrote_stand_in_nobodys_way(empty: Place, gguf: Path) -> None:
    about = b"Metadata-Version: 2.1\nName: %s\nVersion: 1.0\n"
    damage(empty, "no_value-1.0.dist-info", about=about % b"no-value", points=b"[bestiary]\njust words\n")
    damage(empty, "latin-1.0.dist-info", about=about % b"latin", points=b"[bestiary]\nlatin = caf\xe9\n")
    damage(empty, "nameless-1.0.dist-info", points=b"[bestiary]\nnameless = json\n")
    damage(empty, "others-1.0.dist-info", about=about % b"others", points=b"[console_scripts]\njust words\n")
    damage(empty, "escape-1.0.dist-info", about=about % b"\x1b[31mred\x07", points=b"[bestiary]\n\x1b[1mbold = json\n")
    damage(empty, "spaces-1.0.dist-info", about=about % b"spaces", points=b"[bestiary]\nspaces = two words:x\n")
    damage(empty, "stdlib-1.0.dist-info", about=about % b"stdlib", points=b"[bestiary]\nstdlib = random\n")
    (empty.site_packages / "random.py").write_text("raise SystemExit('another random')")
    (empty.site_packages / "shared.py").write_text(dedent(HEADER))
    for name in (b"one", b"two"):
        damage(empty, f"{name.decode()}-1.0.dist-info", about=about % name, points=b"[bestiary]\nshared = shared\n")
    done = empty.run("plugins", "--json")
    found = reports(done)
    reasons = {name: report["reason"] for name, report in found.items()}
    assert reasons.pop("bestiary") is None
    assert reasons.pop("one") is None and reasons.pop("two") is None
    assert "others" not in reasons
    for called, words in (("no-value", "what pip wrote of it is damaged"), ("latin", "what pip wrote of it is damaged"),
                        ("nameless", "it has no hook"), ("\x1b[31mred\x07", "it has no hook"),
                        ("spaces", "its entry point is 'two words:x'"), ("stdlib", "it has no hook")):
        assert words in str(reasons.pop(called)), called
    assert reasons == {}
    assert done.stderr.count("is set aside") == 6
    assert "\x1b" not in done.stderr + empty.run("plugins").stdout
    assert call(empty, gguf, "run").stdout.startswith("Once")


def test_an_item_that_ends_the_program_when_it_is_called_is_an_error_that_names_it(empty: Place, gguf: Path) -> None:
    (empty.site_packages / "items.py").write_text(ITEMS)
    damage(empty, "items-1.0.dist-info", about=b"Metadata-Version: 2.1\nName: items\nVersion: 1.0\n",
           points=b"[bestiary]\nitems = items\n")
    run = ("run", "-m", gguf, "-p", "Once", "-n", "2")
    cases: list[tuple[tuple[str | Path, ...], str]]
    cases = [((*run, "--architecture", f"bad-{what}"), rf"architecture bad-{what} of items 1.0 failed to [a-z ]+")
             for what in ("normalise", "graph", "derived", "layout", "wrap")]
    cases += [((*run, "--backend", f"bad-{what}"), rf"backend bad-{what} of items 1.0 failed to [a-z ]+")
              for what in ("compile", "forward", "new_cache", "close")]
    cases += [(("bench", "-m", gguf, "-p", "2", "-n", "1", "--backend", "bad-describe", "--json"),
               "backend bad-describe of items 1.0 failed to describe itself"),
              (("quantize", gguf, empty.folder / "q.gguf", "fixed"), "quantizer fixed of items 1.0 failed to quantize"),
              (("quantize", gguf, empty.folder / "q.gguf", "short"), "quantizer short of items 1.0 gave ndarray")]
    for words, said in cases:
        done = empty.run(*words)
        *_, last = done.stderr.splitlines() or [""]
        assert done.returncode == 1 and re.match(rf"bestiary: error: .*{said}", last), (words, done.stderr)
    assert call(empty, gguf, "run").returncode == 0


def test_a_thread_that_never_ends_does_not_keep_the_program(empty: Place) -> None:
    (empty.site_packages / "stays.py").write_text(HEADER + dedent("""
        import threading
        threading.Thread(target=threading.Event().wait, name="stays").start()
    """))
    damage(empty, "stays-1.0.dist-info", about=b"Metadata-Version: 2.1\nName: stays\nVersion: 1.0\n",
           points=b"[bestiary]\nstays = stays\n")
    done = empty.run("plugins", "--json")
    assert reports(done)["stays"]["reason"] is None
    assert done.stderr == "bestiary: thread stays of a plugin still runs; the program ends without it\n"
    assert empty.run("no-such-command").returncode == 2


def test_after_uninstalling_them_nothing_remains(bad: Place) -> None:
    bad.pip_uninstall(*(folder.name for folder in FOLDERS), *(f"bad-{name}" for name in TABLE))
    done = bad.run("plugins", "--json")
    assert list(reports(done)) == ["bestiary"] and done.stderr == ""
    assert not [path.name for path in bad.site_packages.iterdir() if path.name.startswith("bad")]
