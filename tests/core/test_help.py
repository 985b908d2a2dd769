"""`bestiary --help` is quick, because nothing heavy is imported for it."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys

HELP = [sys.executable, "-m", "bestiary", "--help"]


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


def test_help_is_quick() -> None:
    """In seconds of processor time, which a busy machine does not stretch as it does those on the clock."""
    times = []
    for _ in range(10):
        before = os.times()
        subprocess.run(HELP, capture_output=True, check=True)
        after = os.times()
        times.append(after.children_user - before.children_user + after.children_system - before.children_system)
    assert statistics.median(times) < 0.3, times
