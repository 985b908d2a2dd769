"""What `bestiary plugins new` writes is clean for linters; `tox -e lint` runs this, where they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bestiary.scaffold import EXAMPLES, package

ROOT = Path(__file__).parents[2]
LINTERS = {"ruff": ("check", "--isolated", "--no-cache", "--line-length=120", "--select=E,F,UP,B,SIM"),
           "mypy": ("--strict", "--cache-dir=mypy")}


@pytest.mark.parametrize("linter", LINTERS)
def test_what_is_written_is_clean_for_linters(linter: str, tmp_path: Path) -> None:
    for kind, example in EXAMPLES.items():
        for file, text in package(kind, f"my-{example.name}2").items():
            (tmp_path / kind / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / kind / file).write_text(text, "utf-8")
    roots = [str(ROOT / part) for part in ("core", "plugins", "kernels")]
    folders = [str(tmp_path / kind) for kind in EXAMPLES]
    done = subprocess.run([sys.executable, "-m", linter, *LINTERS[linter], *folders], capture_output=True, text=True,
                          cwd=tmp_path, env={**os.environ, "MYPYPATH": os.pathsep.join(roots + folders)})
    assert done.returncode == 0, done.stdout + done.stderr
