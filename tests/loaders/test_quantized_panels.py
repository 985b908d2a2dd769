"""Weights that files hold transposed are read by panels, each once, and few are kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bestiary.encoding import F32, Encoding
from bestiary.errors import BestiaryError
from bestiary.files import DataFile, FileTensor
from bestiary_plugins.loaders.quantized import panels
from bestiary_plugins.loaders.quantized.panels import Panels, Transposed, columns

ROWS, COLUMNS = 200, 16
WANTED = np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS)


class Made:
    """A transposed weight, and what was made of it."""

    def __init__(self, shared: Panels, name: str = "w", fails: int = 0) -> None:
        self.calls: list[tuple[int, int]] = []
        self.fails = fails
        self.tensor = Transposed(name, (ROWS, COLUMNS), F32, shared, self.load, self.fill)

    def load(self, first: int, last: int) -> Any:
        self.calls.append((first, last))
        if len(self.calls) <= self.fails:
            raise BestiaryError("the disk is gone")
        return [WANTED.T[:, first:last]]

    def fill(self, panel: Any, start: int, stop: int) -> Any:
        return np.ascontiguousarray(panel[0][:, start:stop].T).view(np.uint8)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "PANEL_BYTES", 64 * COLUMNS * 4)  # 64 rows


@pytest.mark.usefixtures("small")
def test_ranges_in_order_load_each_panel_once_on_any_number_of_threads() -> None:
    made = Made(Panels())
    ranges = [(start, min(start + 7, ROWS)) for start in range(0, ROWS, 7)]
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda item: made.tensor.decode(*item), ranges))
    assert np.array_equal(np.concatenate(rows), WANTED)
    assert sorted(made.calls) == [(0, 64), (64, 128), (128, 192), (192, 200)]
    assert np.array_equal(made.tensor.decode(60, 140), WANTED[60:140])
    assert made.tensor.read(200, 200).shape == (0, COLUMNS * 4)
    with pytest.raises(IndexError, match="200..201"):
        made.tensor.read(200, 201)


@pytest.mark.usefixtures("small")
def test_what_is_kept_does_not_grow_with_the_number_of_weights() -> None:
    shared = Panels(3 * 64 * COLUMNS * 4)
    for i in range(10):
        assert np.array_equal(Made(shared, f"w{i}").tensor.array(), WANTED)
    kept = sum(array.nbytes for slot in shared._slots.values() for array in slot.arrays or ())
    assert 0 < kept <= 3 * 64 * COLUMNS * 4
    larger = Panels(1)  # less than one panel: the last one is kept, or every range would make it anew
    made = Made(larger)
    for row in range(64):
        made.tensor.read(row, row + 1)
    assert made.calls == [(0, 64)]


@pytest.mark.usefixtures("small")
def test_a_panel_that_could_not_be_loaded_is_loaded_the_next_time() -> None:
    made = Made(Panels(), fails=1)
    with pytest.raises(BestiaryError, match="the disk is gone"):
        made.tensor.read(0, 1)
    assert np.array_equal(made.tensor.array(), WANTED)


def test_columns_are_read_from_their_places_alone(tmp_path: Path) -> None:
    numbers = np.arange(60, dtype=np.int32).reshape(5, 12)
    (tmp_path / "f").write_bytes(b"abcd" + numbers.tobytes())
    file = DataFile(tmp_path / "f")
    tensor = FileTensor(file, 4, (5, 12), Encoding("I32", 1, (4,)), "t")
    for first, last in ((0, 12), (3, 5), (11, 12), (4, 4)):
        found = columns(tensor, first, last)
        assert np.array_equal(np.ascontiguousarray(found).view(np.int32)[..., 0] if last > first else found[..., 0],
                              numbers[:, first:last])
    with pytest.raises(IndexError, match="bytes 40..52 of rows of 48"):
        columns(tensor, 10, 13)
    with pytest.raises(BestiaryError, match="lies outside the file"):
        file.read_columns(8, 5, 48, 0, 4)
    with (tmp_path / "f").open("ab") as more:
        more.write(b"x")
    with pytest.raises(BestiaryError, match="was written to while it was read"):
        columns(tensor, 3, 5)
