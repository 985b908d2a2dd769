"""The plugin host: what it loads, what it sets aside, and how it answers for names."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from bestiary import host as host_module
from bestiary.encoding import F16
from bestiary.errors import BestiaryError
from bestiary.host import Host, HostSettings

HEADER = """
    from bestiary.checkpoint import Checkpoint
    from bestiary.plugin import *

    EIGHT, FOUR = (Encoding("e", size, (size,), decoder=len) for size in (8, 4))

    class Fixed(Quantizer):
        encoding = F32
        def __init__(self, name="fixed", **kept):
            self.name = name
            self.__dict__.update(kept)
        def quantize(self, rows, importance=None):
            return rows.view("u1")

    class Marked(Loader):
        def __init__(self, name, mark=b"", sure=90):
            self.name, self.mark, self.sure = name, mark, sure
        def recognise(self, path):
            return self.sure if path.is_file() and path.read_bytes().startswith(self.mark) else 0
        def open(self, path, host):
            return Checkpoint(path, {"opened by": self.name}, {}, "canonical")

    class Family(Architecture):
        namings = {}
        def __init__(self, name, claim):
            self.name, self.claim = name, claim
        def claims(self, config, tokenizer):
            return self.claim
        def normalise(self, config, shapes):
            return dict(config)
        def graph(self, config, context):
            raise NotImplementedError
        def example_config(self):
            return {}
"""
ONE_QUANTIZER = """
    @hookimpl
    def bestiary_quantizers():
        return [Fixed()]
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes an installed distribution with one plugin, as pip would leave it."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(host_module, "_said", set())

    def make(distribution: str, *code: str, version: str = "1.0", header: str = HEADER) -> None:
        module = distribution.replace("-", "_")
        monkeypatch.delitem(sys.modules, module, raising=False)
        (folder / f"{module}.py").write_text("".join(map(dedent, (header, *code))))
        info = folder / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[bestiary]\n{distribution}-plugin = {module}\n")

    return make


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was said on the log, of plugins that are not our own."""
    caplog.set_level(logging.WARNING, logger="bestiary")
    return lambda: [record.getMessage() for record in caplog.records
                    if record.name == "bestiary" and "'builtin'" not in record.getMessage()]


def reason(host: Host, distribution: str) -> str:
    (record,) = [record for record in host.report() if record.distribution == distribution]
    assert record.traceback is not None and record.provides == {}
    return record.reason or ""


# What works


def test_built_in_plugins_come_first_and_cannot_be_switched_off(install: Install) -> None:
    install("aaa", ONE_QUANTIZER)
    assert [record.distribution for record in Host(HostSettings()).report()] == ["bestiary", "aaa"]
    assert [record.distribution for record in Host(HostSettings(names=())).report()] == ["bestiary"]


def test_our_own_plugins_are_not_set_aside(host: Host) -> None:
    (own,) = host.report()
    assert own.reason is None, own.traceback
    assert set(own.provides) >= {"architectures", "loaders", "writers", "quantizers", "backends"}


def test_a_third_party_provides_what_its_hooks_give(install: Install) -> None:
    install("thing", ONE_QUANTIZER, """
        @hookimpl
        def bestiary_commands():
            return {"hello": "thing.module:function"}
    """, version="2.5")
    host = Host(HostSettings())
    assert host.quantizers["fixed"].name == "fixed"
    assert host.commands["hello"] == "thing.module:function"
    record = host.report()[-1]
    assert (record.plugin, record.distribution, record.version, record.entry_point) == (
        "thing-plugin", "thing", "2.5", "thing")
    assert record.provides == {"quantizers": ("fixed",), "commands": ("hello",)}
    assert record.seconds > 0 and record.reason is None


def test_a_host_without_entry_points_has_the_plain_encodings_and_nothing_else() -> None:
    host = Host(HostSettings(), entry_points=False)
    assert host.report() == [] and list(host.loaders) == []
    assert sorted(host.encodings) == ["bf16", "f16", "f32"] and host.encodings["F16"] is F16


def test_only_the_hook_of_the_kind_that_is_asked_for_is_called(install: Install) -> None:
    install("lazy", ONE_QUANTIZER, """
        @hookimpl
        def bestiary_loaders():
            raise RuntimeError("called")
    """)
    host = Host(HostSettings())
    assert "lazy" not in sys.modules
    assert "fixed" in host.quantizers
    assert host.report()[-1].reason == "RuntimeError: called"


def test_a_hook_is_called_once_a_host(install: Install) -> None:
    install("counting", """
        calls = []
        @hookimpl
        def bestiary_quantizers():
            calls.append(1)
            yield Fixed()
    """)
    host = Host(HostSettings())
    assert host.quantizers["fixed"] is host.quantizers["fixed"]
    host.report()
    assert sys.modules["counting"].calls == [1]


@pytest.mark.parametrize(("value", "expected"), [
    (None, ["bestiary", "one", "two"]), ("", ["bestiary"]), ("two", ["bestiary", "two"]),
    ("One-Plugin, two", ["bestiary", "one", "two"])])
def test_the_environment_chooses_third_parties(
        install: Install, monkeypatch: pytest.MonkeyPatch, value: str | None, expected: list[str]) -> None:
    install("one", ONE_QUANTIZER)
    install("two", ONE_QUANTIZER)
    if value is not None:
        monkeypatch.setenv("BESTIARY_PLUGINS", value)
    host = Host(HostSettings.from_environment())
    assert [record.distribution for record in host.report()] == expected
    assert "one" in sys.modules or "one" not in expected


def test_a_plugin_that_is_asked_for_and_not_installed_is_an_error(install: Install) -> None:
    install("there", ONE_QUANTIZER)
    with pytest.raises(BestiaryError, match=r"'absent' is asked for .* installed: there"):
        Host(HostSettings(names=("there", "absent")))


def test_without_our_own_entry_point_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(BestiaryError, match=r"not installed.*pip install -e \."):
        Host(HostSettings())


# One-file plugins


def write(path: Path, code: str) -> str:
    path.write_text(dedent(HEADER) + dedent(code))
    return str(path)


def test_a_single_file_is_a_plugin(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", ONE_QUANTIZER)
    host = Host(HostSettings(files=(file,)), entry_points=False)
    assert list(host.quantizers) == ["fixed"]
    (record,) = host.report()
    assert (record.plugin, record.distribution, record.version, record.entry_point) == ("mine", "mine.py", "", file)
    assert str(tmp_path) not in sys.path


def test_two_hosts_share_the_classes_of_a_file(tmp_path: Path) -> None:
    settings = HostSettings(files=(write(tmp_path / "mine.py", ONE_QUANTIZER),))
    first, second = (Host(settings, entry_points=False).quantizers["fixed"] for _ in range(2))
    assert type(first) is type(second)


def test_a_worker_process_makes_the_same_host_and_finds_a_files_classes(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "mine.py", ONE_QUANTIZER)
    monkeypatch.chdir(tmp_path)
    host = Host(HostSettings(files=("mine.py",), prefer=("bestiary",)), entry_points=False)
    sent = pickle.dumps((host, host.quantizers["fixed"]))
    (tmp_path / "sent").write_bytes(sent)
    code = """
import os, pickle
file = open("sent", "rb")
os.chdir("/")
host, quantizer = pickle.load(file)
print(type(host.quantizers["fixed"]) is type(quantizer), host.settings.prefer, list(host.quantizers))
"""
    # The quantizer's class is found by its module, which the host that comes before it imports.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True ('bestiary',) ['fixed']\n", done.stderr


@pytest.mark.parametrize(("name", "words"), [("absent.py", "no such file"), ("mine.txt", "suffix .py")])
def test_a_file_that_is_no_plugin_is_an_error(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(BestiaryError, match=words):
        Host(HostSettings(files=(str(tmp_path / name),)), entry_points=False)


# What is set aside


@pytest.mark.parametrize(("code", "words"), [
    ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    ("raise SystemExit(3)", "SystemExit: 3"),
    ("raise GeneratorExit", "GeneratorExit"),
    ("class Odd(BaseException): pass\nraise Odd('a\\nb')", "Odd: a b"),
    ("bestiary_api = 99\n" + dedent(ONE_QUANTIZER), "version 99 of the plugin interface and this bestiary has"),
    ("bestiary_api = '1'", "bestiary_api is '1'"),
    ("@hookimpl\ndef bestiary_loadrs(): return []", "bestiary_loadrs is no hook; known: bestiary_architectures"),
    ("@hookimpl\ndef bestiary_loaders(registry): return []", "registry"),
    ("def bestiary_loaders(): return []", "bestiary_loaders is not marked with @hookimpl"),
    ("@hookimpl(wrapper=True)\ndef bestiary_loaders(): return (yield)", "is a wrapper"),
    ("x = 1", "it has no hook; known: bestiary_architectures"),
    ("@hookimpl\ndef bestiary_loaders(): raise SystemExit", "SystemExit"),
    ("@hookimpl\ndef bestiary_loaders(): return None", "gave NoneType None, not an iterable of loaders"),
    ("@hookimpl\ndef bestiary_loaders(): return 'abc'", "not an iterable of loaders"),
    ("@hookimpl\ndef bestiary_loaders():\n    yield Marked('a')\n    raise OSError(9)", "OSError: 9"),
    ("@hookimpl\ndef bestiary_loaders(): return [Fixed()]", "not an instance of Loader"),
    ("@hookimpl\ndef bestiary_loaders(): return [Marked]", "gave the class Marked, not an instance of Loader"),
    ("@hookimpl\ndef bestiary_loaders(): return [Marked('')]", "has the name ''; a word is needed"),
    ("@hookimpl\ndef bestiary_loaders(): return [Marked(7)]", "has the name 7"),
    ("@hookimpl\ndef bestiary_loaders(): return [Marked('a'), Marked('A')]", "gave 'a' twice"),
    ("@hookimpl\ndef bestiary_quantizers(): return [Fixed(encoding='f32')]", "fixed: its encoding is str 'f32'"),
    ("@hookimpl\ndef bestiary_quantizers(): return [Fixed(aliases='2')]", "fixed: its aliases is str '2'"),
    ("@hookimpl\ndef bestiary_quantizers(): return [Fixed(aliases=(2,))]", "int 2 among its aliases is no word"),
    ("@hookimpl\ndef bestiary_commands(): return ['hello']", "not a mapping"),
    ("@hookimpl\ndef bestiary_commands(): return {'hello': print}", 'not "module:function"'),
    ("@hookimpl\ndef bestiary_commands(): return {'Hello you': 'a:b'}", "'Hello you'"),
])
def test_a_bad_plugin_is_set_aside_and_says_why(
        install: Install, lines: Callable[[], list[str]], code: str, words: str) -> None:
    install("bad", code, version="0.3")
    install("good", ONE_QUANTIZER)
    host = Host(HostSettings())
    assert words in reason(host, "bad")
    assert "fixed" in host.quantizers and "bf16" in host.encodings
    (line,) = lines()
    assert line.startswith("plugin 'bad-plugin' of bad 0.3 is set aside: ") and "\n" not in line
    assert line.endswith("; see `bestiary plugins`")


def test_a_failing_hook_takes_all_of_its_plugin_away(install: Install) -> None:
    install("half", ONE_QUANTIZER, """
        @hookimpl
        def bestiary_loaders():
            yield Marked("half")
            raise RuntimeError
    """)
    host = Host(HostSettings())
    assert "fixed" in host.quantizers
    assert "half" not in host.loaders
    assert "fixed" not in host.quantizers


def test_a_bad_plugin_is_named_once_a_process(install: Install, lines: Callable[[], list[str]]) -> None:
    install("bad", "raise RuntimeError")
    first, second = Host(HostSettings()), Host(HostSettings())
    for host in (first, second, first):
        host.report()
    assert len(lines()) == 1


def test_a_worker_process_does_not_name_it_again(install: Install, lines: Callable[[], list[str]]) -> None:
    install("bad", "raise RuntimeError")
    pickle.loads(pickle.dumps(Host(HostSettings()))).report()
    assert lines() == []


def test_without_logging_set_up_it_is_one_line_on_stderr(tmp_path: Path) -> None:
    file = write(tmp_path / "bad.py", "raise RuntimeError('no')")
    code = ("from bestiary.host import Host, HostSettings\n"
            f"host = Host(HostSettings(names=(), files=({file!r},)))\n"
            "print(list(host.backends), len(host.loaders) > 0)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("] True\n")
    assert done.stderr == "plugin 'bad' of bad.py is set aside: RuntimeError: no; see `bestiary plugins`\n"


def test_what_a_plugin_prints_goes_to_stderr(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("chatty", """
        print("imported")
        @hookimpl
        def bestiary_quantizers():
            print("called")
            yield Fixed()
            print("exhausted")
    """)
    assert "fixed" in Host(HostSettings()).quantizers
    out, err = capsys.readouterr()
    assert out == "" and err.split() == ["imported", "called", "exhausted"]


def test_an_interrupt_is_not_swallowed(install: Install) -> None:
    install("interrupted", "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        Host(HostSettings()).quantizers  # noqa: B018 - asking is what loads
    assert signal.getsignal(signal.SIGINT) is before


def test_a_plugin_that_raises_an_interrupt_is_set_aside(install: Install) -> None:
    install("pressing", "raise KeyboardInterrupt")
    assert reason(Host(HostSettings()), "pressing") == "it raises KeyboardInterrupt, and nobody pressed Ctrl-C"


@pytest.mark.parametrize("where", ["import", "hook"])
def test_a_plugin_moves_nobody_to_another_folder_and_changes_no_rights(
        install: Install, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change = "import os; os.chdir('/'); os.umask(0o777)\n"
    hook = f"@hookimpl\ndef bestiary_commands():\n    {change}    return {{}}\n"
    install("moving", ONE_QUANTIZER, change if where == "import" else hook)
    monkeypatch.chdir(tmp_path)
    mask = os.umask(0o027)
    try:
        host = Host(HostSettings())
        assert "fixed" in host.quantizers and "moving" not in host.commands
        assert (Path.cwd(), os.umask(mask)) == (tmp_path, 0o027)
    finally:
        os.umask(mask)


# Names


def test_an_unknown_name_is_answered_with_the_known_ones(install: Install) -> None:
    install("thing", ONE_QUANTIZER)
    with pytest.raises(BestiaryError, match=r"unknown quantizer 'q4'; known: .*\bfixed\b"):
        Host(HostSettings()).quantizers["q4"]


def test_names_count_in_any_case_and_aliases_with_them(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", """
        @hookimpl
        def bestiary_quantizers():
            return [Fixed(aliases=("777", "MOSTLY_FIXED"), retired={"776": "it was given up in 2023; use fixed"})]
    """)
    quantizers = Host(HostSettings(files=(file,)), entry_points=False).quantizers
    assert {quantizers[name].name for name in ("fixed", "FIXED", "777", "mostly_fixed")} == {"fixed"}
    assert list(quantizers) == ["fixed"] and len(quantizers) == 1
    assert quantizers.get("776") is None and quantizers.get("fixed") is quantizers["fixed"]
    with pytest.raises(BestiaryError, match="quantizer '776': it was given up in 2023; use fixed"):
        quantizers["776"]


def test_a_name_with_two_providers_is_an_error_only_when_it_is_asked_for(install: Install) -> None:
    install("one", ONE_QUANTIZER, version="1.1")
    install("two", ONE_QUANTIZER)
    quantizers = Host(HostSettings()).quantizers
    assert "fixed" in quantizers and "fixed" in quantizers.names and "fixed" not in list(quantizers)
    assert [entry.origin.distribution for entry in quantizers.providers("fixed")] == ["one", "two"]
    assert all(item is not None for item in quantizers.values())
    with pytest.raises(BestiaryError, match=r"quantizer 'Fixed' is provided by one 1.1 and by two 1.0; "
                                            r"choose with --prefer one or --prefer two"):
        quantizers["Fixed"]


def test_a_preferred_distribution_wins(install: Install) -> None:
    install("one", ONE_QUANTIZER)
    install("two", ONE_QUANTIZER)
    quantizers = Host(HostSettings(prefer=("TWO",))).quantizers
    assert type(quantizers["fixed"]).__module__ == "two" and "fixed" in list(quantizers)


def test_preferring_what_is_not_there_is_an_error() -> None:
    with pytest.raises(BestiaryError, match="--prefer three: no plugin comes from it; they come from: bestiary"):
        Host(HostSettings(names=(), prefer=("three",)))


def test_an_alias_that_is_anothers_name_is_a_clash(install: Install) -> None:
    install("one", ONE_QUANTIZER)
    install("two", "@hookimpl\ndef bestiary_quantizers(): return [Fixed('other', aliases=('fixed',))]")
    quantizers = Host(HostSettings()).quantizers
    assert quantizers["other"].name == "other"
    with pytest.raises(BestiaryError, match="is provided by one 1.0 and by two 1.0"):
        quantizers["fixed"]


def test_equal_encodings_are_one_and_different_ones_of_a_name_clash(install: Install) -> None:
    install("one", "@hookimpl\ndef bestiary_quantizers(): return [Fixed('a', encoding=EIGHT)]")
    install("two", "@hookimpl\ndef bestiary_quantizers(): return [Fixed('b', encoding=EIGHT)]")
    assert Host(HostSettings()).encodings["e"].block_size == 8
    install("three", "@hookimpl\ndef bestiary_quantizers(): return [Fixed('c', encoding=FOUR)]")
    with pytest.raises(BestiaryError, match="encoding 'e' is provided by one 1.0 and by three 1.0"):
        Host(HostSettings()).encodings["e"]
    assert Host(HostSettings(prefer=("three",))).encodings["e"].block_size == 4


# Recognising files


def loaders(install: Install, distribution: str, *made: str) -> None:
    install(distribution, f"@hookimpl\ndef bestiary_loaders(): return [{', '.join(made)}]")


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.write_bytes(b"MARK and more")
    return path


def test_the_surest_loader_wins(install: Install, marked: Path) -> None:
    loaders(install, "one", "Marked('weak', b'MARK', 40)", "Marked('strong', b'MARK', 95)", "Marked('none', b'other')")
    host = Host(HostSettings())
    assert host.recognise(marked).name == "strong"
    assert host.open(marked).config == {"opened by": "strong"}
    assert host.open(marked, loader="Weak").config == {"opened by": "weak"}
    with pytest.raises(BestiaryError, match="unknown loader 'absent'; known: .*strong"):
        host.open(marked, loader="absent")


def test_loaders_that_are_equally_sure_clash(install: Install, marked: Path) -> None:
    loaders(install, "one", "Marked('a', b'MARK')")
    loaders(install, "two", "Marked('b', b'MARK')")
    with pytest.raises(BestiaryError, match=r"a of one 1.0 and b of two 1.0 recognise .*; choose with --loader NAME"):
        Host(HostSettings()).recognise(marked)
    assert Host(HostSettings(prefer=("two",))).recognise(marked).name == "b"
    loaders(install, "three", "Marked('a', b'MARK')")
    with pytest.raises(BestiaryError, match="loader 'a' is provided by one 1.0 and by three 1.0"):
        Host(HostSettings(names=("one", "three"))).recognise(marked)


@pytest.mark.parametrize("answer", ["1 / 0", "'sure'", "exit()"])
def test_a_loader_that_cannot_say_counts_as_not_recognising(
        install: Install, marked: Path, lines: Callable[[], list[str]], answer: str) -> None:
    loaders(install, "fine", "Marked('fine', b'MARK', 10)")
    install("odd", f"""
        class Odd(Marked):
            def recognise(self, path):
                return {answer}
        @hookimpl
        def bestiary_loaders(): return [Odd("odd"), Marked("other", b"MA", 5)]
    """)
    host = Host(HostSettings())
    assert host.recognise(marked).name == "fine" and host.recognise(marked).name == "fine"
    (line,) = lines()
    assert line.startswith("odd of odd 1.0 could not say whether to recognise")
    assert "other" in host.loaders  # one odd file does not take a plugin away


def test_what_no_loader_recognises_is_described(tmp_path: Path, host: Host) -> None:
    unknown = tmp_path / "unknown.bin"
    unknown.write_bytes(b"\x00\xffnobody knows this file")
    with pytest.raises(BestiaryError, match=r"no loader recognises .*unknown.bin \(it starts with b'\\x00\\xffnobody.*"
                                            r"known: "):
        host.open(unknown)
    with pytest.raises(BestiaryError, match=r"a folder that holds unknown.bin"):
        host.open(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BestiaryError, match=r"an empty folder"):
        host.open(tmp_path / "empty")


@pytest.mark.parametrize(("content", "words"), [
    (None, "does not exist"), (b"", "is an empty file"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer.*git lfs pull")])
def test_a_path_that_cannot_be_a_checkpoint_says_why(
        tmp_path: Path, host: Host, content: bytes | None, words: str) -> None:
    path = tmp_path / "model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BestiaryError, match=words):
        host.open(path)


def test_the_surest_architecture_wins(install: Install) -> None:
    from bestiary.checkpoint import TokenizerMaterial

    install("one", "@hookimpl\ndef bestiary_architectures(): return [Family('wyvern', 60), Family('never', 0)]")
    install("two", "@hookimpl\ndef bestiary_architectures(): return [Family('drake', 50)]")
    host = Host(HostSettings(names=("one", "two")))
    config = {"model_type": "wyvern"}
    assert host.architecture_of(config, TokenizerMaterial()).name == "wyvern"
    assert host.architecture_of(config, TokenizerMaterial(), "DRAKE").name == "drake"
    install("three", "@hookimpl\ndef bestiary_architectures(): return [Family('wyvern', 10)]")
    for name in (None, "wyvern"):  # of two that have one name the surest, too
        assert type(Host(HostSettings()).architecture_of(config, TokenizerMaterial(), name)).__module__ == "one"
    install("tied", "@hookimpl\ndef bestiary_architectures(): return [Family('wyvern', 60)]")
    with pytest.raises(BestiaryError, match="architecture 'wyvern' is provided by one .* three .* tied 1.0"):
        Host(HostSettings()).architecture_of(config, TokenizerMaterial())
    with pytest.raises(BestiaryError, match="unknown architecture 'wyvern'; known: .*drake"):
        Host(HostSettings(names=("two",))).architecture_of(config, TokenizerMaterial(), "wyvern")
    install("four", "@hookimpl\ndef bestiary_architectures(): return [Family('dodo', 0)]")
    with pytest.raises(BestiaryError, match="unknown architecture 'wyvern'; known: .*dodo.*plugin package"):
        Host(HostSettings(names=("four",))).architecture_of(config, TokenizerMaterial())


# Speed


def test_making_a_host_imports_neither_numpy_nor_a_plugin() -> None:
    code = ("import sys, json; from bestiary.host import Host; Host(); first = set(sys.modules); Host().commands; "
            "print(json.dumps([sorted({'numpy', 'bestiary_plugins'} & first), 'numpy' in sys.modules]))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], False]


def test_fifty_plugins_are_found_and_asked(install: Install, tmp_path: Path) -> None:
    for i in range(50):
        install(f"stub-{i:02}", f"from bestiary.hookspecs import hookimpl\n@hookimpl\ndef bestiary_commands(): "
                f"return {{'stub-{i}': 'stub:main'}}", header="")
    code = ("from bestiary.host import Host; print(sum(name.startswith('stub-') for name in Host().commands))")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}  # benchmarks/startup.py has how long it takes
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["50"]
