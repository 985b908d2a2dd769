"""The compiled module is there: an install without it succeeds too, so somebody must look."""

from __future__ import annotations

import importlib
import os
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest


@pytest.mark.skipif(bool(os.environ.get("BESTIARY_NO_KERNELS")), reason="BESTIARY_NO_KERNELS is set")
def test_the_compiled_module_is_there_and_imports() -> None:
    import bestiary_kernels

    modules = {file.name.split(".")[0] for folder in bestiary_kernels.__path__ for file in Path(folder).iterdir()
               if file.name.endswith(tuple(EXTENSION_SUFFIXES))}
    assert modules, f"no compiled module in {list(bestiary_kernels.__path__)}: is there a compiler?"
    for module in sorted(modules):
        importlib.import_module(f"bestiary_kernels.{module}")
