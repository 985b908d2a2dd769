"""A place to install example packages in: a fresh virtual environment that sees Bestiary and all else that is here."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PACKAGES = Path(__file__).parent / "packages"
"""The example packages, a folder each."""
SECONDS = 300
"""No command here takes so long; one that hangs is ended."""

Completed = subprocess.CompletedProcess[str]


class Place:
    """An environment of its own: what is installed into it, and uninstalled, changes nothing outside. It needs no
    network: the packages of the environment that the tests run in are seen from it, pip and setuptools among them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder, symlinks=True)  # without pip: the one that is here does
        self.interpreter = folder / "bin/python"
        self.site_packages = folder / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
        # addsitedir also reads the .pth files there, which is how an editable install is found.
        outside = [path for path in site.getsitepackages() if Path(path).is_dir()]
        (self.site_packages / "outside.pth").write_text(
            "".join(f"import site; site.addsitedir({path!r})\n" for path in outside))

    def run(self, *words: str | Path, input: str = "", **environment: str) -> Completed:
        """The command line: `bestiary WORDS`."""
        return self.python_words("-m", "bestiary", *words, input=input, **environment)

    def python(self, code: str, *words: str | Path, **environment: str) -> Completed:
        """Code by itself, the words as sys.argv[1:]."""
        return self.python_words("-c", code, *words, **environment)

    def python_words(self, *words: str | Path, input: str = "", **environment: str) -> Completed:
        """The interpreter with these words. environment: variables beside those of the tests."""
        own = {name: value for name, value in os.environ.items() if name != "BESTIARY_PLUGINS"}
        return subprocess.run([str(self.interpreter), *map(str, words)], input=input, capture_output=True, text=True,
                              cwd=self.folder, env={**own, **environment}, timeout=SECONDS)

    def pip_install(self, *folders: Path) -> None:
        """Builds and installs packages from copies of their folders, so that the tree stays clean."""
        with tempfile.TemporaryDirectory(dir=self.folder) as copies:
            named = [shutil.copytree(folder, Path(copies) / folder.name) for folder in folders]
            self._pip("install", "--no-build-isolation", "--no-deps", "--no-index", *named)

    def pip_uninstall(self, *names: str) -> None:
        """By the names of the distributions."""
        self._pip("uninstall", "--yes", *names)

    def _pip(self, *words: str | Path) -> None:
        done = self.python_words("-m", "pip", *words, PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_CONFIG_FILE=os.devnull)
        if done.returncode:
            raise RuntimeError(f"pip {' '.join(map(str, words))}:\n{done.stdout}{done.stderr}")
