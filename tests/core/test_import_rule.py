"""What may import what, and that the core knows no model and no format by name."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {"bestiary": ROOT / "core/bestiary", "bestiary_plugins": ROOT / "plugins/bestiary_plugins",
           "bestiary_kernels": ROOT / "kernels/bestiary_kernels"}
MAY_IMPORT = {"bestiary": {"bestiary"}, "bestiary_plugins": {"bestiary", "bestiary_plugins", "bestiary_kernels"},
              "bestiary_kernels": {"bestiary_kernels"}}
NAMES_OF_OTHERS = ("llama", "alpaca", "vicuna", "bloom", "falcon", "chatglm", "mistral", "mixtral", "qwen", "gemma",
                   "gpt2", "gpt_neox", "baichuan", "gguf", "ggml", "ggjt", "ggmf", "gptq", "awq", "safetensors",
                   "q4_0", "q8_0")


def imports(source: str, package: str) -> Iterator[tuple[str, str]]:
    """(module, name in it or "") of every import; relative ones as they are from `package`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = package if node.level else ""
            module = ".".join(part for part in (module, node.module or "") if part)
            yield from ((module, alias.name) for alias in node.names)


def private(module: str, name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in (*module.split("."), name))


@pytest.mark.parametrize("package", SOURCES)
def test_each_package_imports_only_what_it_may(package: str) -> None:
    wrong = []
    for path in sorted(SOURCES[package].rglob("*.py")):
        for module, name in imports(path.read_text(), package):
            root = module.split(".")[0]
            if root in SOURCES and root not in MAY_IMPORT[package]:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
            if root in SOURCES and root != package and private(module, name):
                wrong.append(f"{path.relative_to(ROOT)} imports the private {module}.{name}".rstrip("."))
    for path in sorted(SOURCES[package].rglob("*.pyx")):
        for root in re.findall(r"^\s*(?:from|c?import)\s+(bestiary\w*)", path.read_text(), re.MULTILINE):
            if root not in MAY_IMPORT[package]:
                wrong.append(f"{path.relative_to(ROOT)} imports {root}")
    assert not wrong, "\n".join(wrong)


def test_the_library_needs_no_command_line() -> None:
    skin = SOURCES["bestiary"] / "cli"
    wrong = [f"{path.relative_to(ROOT)} imports {module}" for path in sorted(SOURCES["bestiary"].rglob("*.py"))
             if skin not in path.parents and path.name != "__main__.py"
             for module, name in imports(path.read_text(), "bestiary")
             if f"{module}.{name}.".startswith("bestiary.cli.")]
    assert not wrong, "\n".join(wrong)


def test_only_the_hooks_use_pluggy() -> None:
    users = {path.name for folder in SOURCES.values() for path in folder.rglob("*.py")
             if any(module.split(".")[0] == "pluggy" for module, _ in imports(path.read_text(), ""))}
    assert users == {"hookspecs.py", "hooks.py"}


def test_the_core_names_no_family_and_no_format() -> None:
    wrong = []
    for path in sorted(SOURCES["bestiary"].rglob("*.py")):
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE):
                continue
            wrong += [f"{path.relative_to(ROOT)}:{token.start[0]}: {name}"
                      for name in NAMES_OF_OTHERS if name in token.string.casefold()]
    assert not wrong, "\n".join(wrong)
