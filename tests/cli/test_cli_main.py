"""The command itself: help, errors, exit statuses, plugins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bestiary import __version__
from bestiary.cli.main import main, take_plugin_options
from bestiary.commands import BUILT_IN

from .conftest import Cli

PLUGIN = '''
from bestiary.plugin import hookimpl

def {name}() -> None:
    """{help}"""
    print("called")

@hookimpl
def bestiary_commands():
    return {{"{name}": "{module}:{name}"}}
'''


def plugin(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A one-file plugin with a command, which lies on the import path besides."""
    module = f"bestiary_test_command_{name}"
    file = folder / f"{module}.py"
    file.write_text(PLUGIN.format(name=name, module=module, help=f"Does {name}."))
    monkeypatch.syspath_prepend(str(folder))
    return file


def test_help_lists_every_command_with_a_line_about_it(cli: Cli) -> None:
    for words in (["--help"], ["-h"], []):
        result = cli(*words)
        assert result.status == 0
        assert not result.err
        listed = {line.split()[0]: line.split(maxsplit=1)[1:] for line in
                  result.out.partition("Commands:\n")[2].splitlines()}
        assert {*BUILT_IN, "demo"} <= listed.keys()
        assert all(listed[name] for name in (*BUILT_IN, "demo"))


@pytest.mark.parametrize("name", [*BUILT_IN, "demo"])
def test_every_command_has_help(cli: Cli, name: str) -> None:
    short, long = cli(name, "-h"), cli(name, "--help")
    assert short.status == long.status == 0
    assert short.out.startswith(f"Usage: bestiary {name}")


def test_help_and_version_import_no_numpy() -> None:
    for words in ("--help", "--version"):
        code = ("import sys; from bestiary.cli.main import main; status = main([sys.argv[1]])\n"
                "assert status == 0; heavy = {'numpy', 'rich', 'sentencepiece', 'tokenizers'} & sys.modules.keys()\n"
                "assert not heavy, heavy")
        subprocess.run([sys.executable, "-c", code, words], check=True, capture_output=True)


def test_version_is_printed(cli: Cli) -> None:
    assert cli("--version").out == f"bestiary {__version__}\n"


@pytest.mark.parametrize(("words", "said"), [
    (["quantise"], "do you mean quantize?"),
    (["zzz"], "known: "),
    (["--frobnicate"], "--frobnicate"),
    (["run", "--frobnicate"], "--frobnicate"),
    (["run", "-n", "five"], "-n"),
    (["run", "-m"], "-m"),
    (["quantize", "x.gguf"], "TYPE"),
    (["run", "one", "two"], "one two"),
    (["--plugin"], "--plugin"),
])
def test_wrong_usage_is_one_line_and_status_2(cli: Cli, words: list[str], said: str) -> None:
    result = cli(*words)
    assert result.status == 2
    assert said in result.err
    assert result.err.count("\n") == 1 and result.err.startswith("bestiary: error: ")
    assert not result.out


def test_plugin_options_may_stand_anywhere_before_two_dashes() -> None:
    chosen, rest = take_plugin_options(
        ["run", "--plugin", "a.py", "-m", "m", "--prefer=x", "--plugin=b.py", "--", "--plugin", "c.py"])
    assert chosen.files == ("a.py", "b.py")
    assert chosen.prefer == ("x",)
    assert rest == ["run", "-m", "m", "--", "--plugin", "c.py"]


def test_a_plugin_brings_a_command(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = plugin(tmp_path, "sing", monkeypatch)
    assert cli("sing", "--plugin", file).out == "called\n"
    assert "Does sing." in cli("--help", "--plugin", file).out
    assert cli("sing").status == 2


def test_a_plugins_command_takes_no_built_in_name_unless_it_is_preferred(
        cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = plugin(tmp_path, "inspect", monkeypatch)
    said = (f"bestiary: command 'inspect' of {file.name} is not used: one of that name is built in; "
            f"choose with --prefer {file.name} or --prefer bestiary\n")
    for words in (["--help"], ["inspect", "--help"], ["plugins"]):
        clash = cli(*words, "--plugin", file)
        assert (clash.status, clash.err) == (0, said) and "called" not in clash.out
    assert said[10:-1] in clash.out
    assert cli("inspect", "--help", "--plugin", file, "--prefer", "bestiary").err == ""
    assert cli("inspect", "--plugin", file, "--prefer", file.name).out == "called\n"


def test_plugins_are_listed_even_where_one_of_them_takes_the_commands_name(
        cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = plugin(tmp_path, "plugins", monkeypatch)
    listed = cli("plugins", "--plugin", file)
    assert listed.status == 0 and "builtin of bestiary" in listed.out and file.name in listed.out
    assert cli("plugins", "--plugin", file, "--prefer", file.name).out == "called\n"


def test_a_listing_imports_no_command_of_a_plugin(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bestiary_test_heavy.py").write_text('raise RuntimeError\n\ndef slow():\n    """Slow and heavy."""\n')
    file = tmp_path / "light.py"
    file.write_text("from bestiary.plugin import hookimpl\n\n@hookimpl\ndef bestiary_commands():\n"
                    "    return {'slow': 'bestiary_test_heavy:slow'}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "Slow and heavy." in cli("--help", "--plugin", file).out


def test_what_is_no_mistake_of_the_user_keeps_its_traceback(cli: Cli, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bestiary_test_broken.py"
    file.write_text("from bestiary.plugin import hookimpl\n\ndef crash() -> None:\n    raise ZeroDivisionError\n\n"
                    "@hookimpl\ndef bestiary_commands():\n    return {'crash': 'bestiary_test_broken:crash'}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ZeroDivisionError):
        main(["crash", "--plugin", str(file)])


def test_a_reader_that_leaves_is_no_error(model: Path) -> None:
    command = f"'{sys.executable}' -m bestiary run -m '{model}' -n 400 --temp 0 | head -c 10"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert done.stdout == "Once upon "
    assert "Traceback" not in done.stderr and "Broken" not in done.stderr


def test_plugins_lists_what_the_built_in_one_provides_and_what_is_set_aside(cli: Cli, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import a_module_that_is_not_there\n")
    result = cli("plugins", "--plugin", broken)
    assert result.status == 0
    assert "loaders" in result.out and "gguf" in result.out
    assert "a_module_that_is_not_there" in result.out
    assert "Traceback" not in result.out
    assert "Traceback" in cli("plugins", "-v", "--plugin", broken).out
