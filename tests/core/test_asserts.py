"""What the tests say holds under `python -O` too, which drops every assert that pytest does not rewrite."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def test_an_assert_of_a_test_that_is_not_true_fails() -> None:
    nothing: list[int] = []
    with pytest.raises(AssertionError):
        assert nothing


def test_nothing_is_asserted_where_an_assert_may_be_dropped() -> None:
    """Modules that tests share are imported as they are."""
    shared = [path for path in TESTS.rglob("*.py") if not path.name.startswith(("test_", "conftest"))]
    assert shared
    assert [f"{path}:{node.lineno}" for path in shared for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Assert)] == []


def test_a_command_that_a_test_starts_is_as_optimized_as_the_test() -> None:
    """It takes PYTHONOPTIMIZE=1: an option -O of the test's own interpreter does not reach it."""
    said = subprocess.run([sys.executable, "-c", "import sys; print(sys.flags.optimize)"], capture_output=True,
                          text=True, check=True)
    assert int(said.stdout) == sys.flags.optimize
