"""Crates keep the contracts of a loader and of a writer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from crate import Crate, CrateWriter

from bestiary.checkpoint import CANONICAL, Checkpoint, TokenizerMaterial
from bestiary.host import Host
from bestiary.tensor import ArrayTensor
from bestiary.testing import LoaderContract, WriterContract

MATERIAL = TokenizerMaterial({"tokenizer.json": b"{}"}, bos=1, add_bos=True, ends=(2, 3), chat_template="{{ x }}")


class TestCrate(LoaderContract):
    loader = Crate()
    writer = CrateWriter()
    header = 700

    def sample(self, folder: Path) -> Path:
        tensors = {"token_embd.weight": ArrayTensor(np.arange(32, dtype=np.float32).reshape(4, 8)),
                   "output_norm.weight": ArrayTensor(np.ones(8, np.float16))}
        path = folder / "x.crate"
        CrateWriter().save(Checkpoint(folder, {"hidden_size": 8}, tensors, CANONICAL, MATERIAL), path, Host())
        return path

    def test_what_is_said_of_the_tokenizer_comes_back(self, path: Path, host: Host) -> None:
        assert Crate().open(path, host).tokenizer == MATERIAL


class TestCrateWriter(WriterContract):
    writer = CrateWriter()
    reader = Crate()
