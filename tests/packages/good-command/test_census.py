"""The command census counts what is there."""

from __future__ import annotations

import numpy as np
from census_command import count

from bestiary.tensor import ArrayTensor


def test_a_tensor_is_counted() -> None:
    assert count(ArrayTensor(np.array([[3.0, -4.0]], np.float32))) \
        == {"weights": 2, "rms": 12.5 ** 0.5, "largest": 4.0}


def test_a_tensor_without_rows_is_counted() -> None:
    assert count(ArrayTensor(np.zeros((0, 4), np.float32))) == {"weights": 0, "rms": 0.0, "largest": 0.0}
