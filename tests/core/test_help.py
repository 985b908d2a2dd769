"""`bestiary --help` is quick (benchmarks/startup.py), because nothing heavy is imported for it."""

from __future__ import annotations

import json
import subprocess
import sys


def test_help_imports_no_numpy() -> None:
    code = """
import json, sys
from bestiary.cli.main import main
status = main(["--help"])
heavy = {"numpy", "tokenizers", "sentencepiece", "safetensors", "jinja2", "bestiary_kernels"}
print(json.dumps([status, sorted(heavy & set(sys.modules))]), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "convert" in done.stdout and "quantize" in done.stdout and "run" in done.stdout
    assert json.loads(done.stderr) == [0, []]
