"""A package with a plugin that works, written for its author to change: the example of its kind, under a new name."""

from __future__ import annotations

import keyword
import os
import re
import tempfile
from dataclasses import dataclass
from importlib import metadata, resources, util
from pathlib import Path
from string import Template

from bestiary.commands import BUILT_IN
from bestiary.contributions import KINDS
from bestiary.discovery import OWN
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary.registry import normal

HOOKS = {rule.singular: hook for hook, rule in KINDS.items()}
"""Kind of plugin -> its hook, without the prefix."""


@dataclass(frozen=True)
class Example:
    """name: the word in the example's files that the new name takes the place of. try_it: a command line with it."""

    name: str
    try_it: str


EXAMPLES = {
    "architecture": Example("gecko", "bestiary run -m MODEL -p TEXT"),
    "loader": Example("newt", "bestiary inspect MODEL.newt"),
    "writer": Example("magpie", "bestiary convert MODEL --outfile MODEL.magpie"),
    "quantizer": Example("mole", "bestiary run --type mole -p TEXT"),
    "backend": Example("hydra", "bestiary run --backend hydra -p TEXT"),
    "command": Example("ibis", "bestiary ibis MODEL"),
}


def create(kind: str, name: str, host: Host, folder: Path | None = None) -> tuple[Path, list[str]]:
    """Writes the package, by default to bestiary-NAME in the current folder: its folder, and the files in it. Raises
    BestiaryError, and leaves nothing behind, for an unknown kind, for a name that is none or taken, and where there is
    something at `folder`."""
    if kind not in EXAMPLES:
        raise BestiaryError(f"unknown kind of plugin {kind!r}; known: {', '.join(EXAMPLES)}")
    check_name(kind, name, host)
    target = folder if folder is not None else Path(distribution_of(name))
    if os.path.lexists(target):
        raise BestiaryError(f"{target} is there already; remove it, or choose another with --folder")
    files = package(kind, name)
    parent = target.absolute().parent
    if not parent.is_dir():
        raise BestiaryError(f"cannot write {target}: there is no folder {parent}")
    try:
        with tempfile.TemporaryDirectory(prefix=".bestiary-", dir=parent) as temporary:
            new = Path(temporary) / "new"
            for file, text in files.items():
                (new / file).parent.mkdir(parents=True, exist_ok=True)
                (new / file).write_text(text, "utf-8")
            os.rename(new, target)  # all of it is there, or nothing
    except OSError as error:
        raise BestiaryError(f"cannot write {target}: {error.strerror}") from None
    return target, list(files)


def package(kind: str, name: str) -> dict[str, str]:
    """The files of the package: path in its folder -> text."""
    example = EXAMPLES[kind]
    word = word_of(kind, name)
    common = {"kind": kind, "name": word, "distribution": distribution_of(name), "module": module_of(name),
              "try_it": renamed(example.try_it, example.name, word)}
    return {
        "pyproject.toml": Template(_text("pyproject.toml.txt")).substitute(common),
        "README.md": Template(_text("README.md.txt")).substitute(common),
        f"{module_of(name)}.py": renamed(_text(f"{kind}.py"), example.name, word),
        f"tests/test_{module_of(name)}.py": renamed(_text(f"test_{kind}.py.txt"), example.name, word),
    }


def check_name(kind: str, name: str, host: Host) -> None:
    """Raises BestiaryError for a name that makes no distribution and module, or that something installed has."""
    if not re.fullmatch("[a-z][a-z0-9]*([-_][a-z0-9]+)*", name) or len(name) > 64:
        raise BestiaryError(f"a plugin cannot be called {name!r}: a word is wanted, of up to 64 lower-case letters, "
                            "digits and single - or _, a letter first")
    word, example = word_of(kind, name), EXAMPLES[kind].name
    if class_of(name) in {*re.findall(r"\w+", _text(f"{kind}.py")), *keyword.kwlist} - {class_of(example)}:
        raise BestiaryError(f"a plugin cannot be called {name!r}: its code uses the word {class_of(name)} otherwise")
    owners = [entry.origin for entry in getattr(host, HOOKS[kind]).providers(word)]
    if owners or kind == "command" and word in BUILT_IN:
        raise BestiaryError(f"{kind} {word!r} is provided by {owners[0] if owners else OWN} already; "
                            "choose another name")
    if any(normal(each.name) == distribution_of(name) for each in metadata.distributions()):
        raise BestiaryError(f"a distribution {distribution_of(name)} is installed already; choose another name")
    if util.find_spec(module_of(name)) is not None:
        raise BestiaryError(f"a module {module_of(name)} is installed already; choose another name")


def distribution_of(name: str) -> str:
    """What pip calls it, and its folder."""
    return f"bestiary-{name.replace('_', '-')}"


def module_of(name: str) -> str:
    return f"bestiary_{name.replace('-', '_')}"


def class_of(name: str) -> str:
    return "".join(part.capitalize() for part in re.split("[-_]", name))


def word_of(kind: str, name: str) -> str:
    """What users will call it; a command has no _ in its name."""
    return name.replace("_", "-") if kind == "command" else name


def renamed(text: str, old: str, new: str) -> str:
    """The example's text with the new name, module and class in place of its own."""
    names = {make(old): make(new) for make in (module_of, class_of, str)}
    return re.sub("|".join(names), lambda found: names[found[0]], text)


def _text(file: str) -> str:
    return resources.files(__name__).joinpath(file).read_text("utf-8")
