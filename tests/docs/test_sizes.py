"""docs/sizes.md is what its script writes today; published configs and indices of shards agree with the plan."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from bestiary.errors import BestiaryError
from bestiary.forecast import forecast
from bestiary.host import Host
from bestiary.testing.tiny import running_backends

ROOT = Path(__file__).parents[2]
NO_CONFIG = {"point-alpaca-7b", "vicuna-13b-b"}
COPIES = {"chatglm-6b-v0": 150_528 * 4096}
"""Weights of tensors that an index lists and nobody needs: an output matrix where it is always the embedding."""


@pytest.mark.machine
def test_the_page_is_what_its_script_writes(data: Path, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    if not running_backends(host, ["cpu"]):
        pytest.skip("the page has the memory of the cpu backend")
    monkeypatch.setenv("BESTIARY_PLUGINS", "")
    script: dict[str, Any] = runpy.run_path(str(ROOT / "scripts/make_sizes.py"))
    wanted = (ROOT / "docs/sizes.md").read_text("utf-8")
    assert script["page"](data) == wanted, "run scripts/make_sizes.py"


def test_every_published_folder_has_its_plan_or_a_line_that_says_why_not(data: Path, host: Host) -> None:
    folders = sorted(path for path in (data / "configs").iterdir() if path.is_dir())
    assert len(folders) >= 16
    for folder in folders:
        if folder.name in NO_CONFIG:
            with pytest.raises(BestiaryError, match=r"folder that holds tokenizer_config.json"):
                forecast(folder, host)
            continue
        facts = forecast(folder, host, 2048)
        index = folder / "pytorch_model.bin.index.json"
        if not index.exists() or folder.name == "chatglm-6b":  # its index is the first release's, copied
            continue
        total = json.loads(index.read_text())["metadata"]["total_size"] // 2
        planned = facts["weights"] + COPIES.get(folder.name, 0)
        assert planned == pytest.approx(total, rel=1e-4), folder.name  # a few tensors are in f32
        f16 = next(row for row in facts["types"] if row["type"] == "f16")
        assert f16["bytes"] == pytest.approx(2 * facts["weights"], rel=0.001)
