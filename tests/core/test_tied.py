"""A second copy of the embedding is left out, another output matrix is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bestiary.canonical import to_canonical
from bestiary.checkpoint import CANONICAL, Checkpoint
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary.tensor import ArrayTensor, BlockTensor, Tensor

FAMILIES = ("llama", "bloom", "falcon", "gptneox", "gpt2", "chatglm1", "qwen2", "gemma2", "phi3")


class Counted(ArrayTensor):
    """Says how many rows of it were read."""

    rows_read = 0

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        self.rows_read += stop - start
        return super().read(start, stop)


def tied(host: Host, name: str) -> Checkpoint:
    """A model whose output matrix is its embedding, without a second copy."""
    family = host.architectures[name]
    config = {**family.example_config(), "tie_word_embeddings": True}
    graph = family.graph(family.normalise(config, {}), 64)
    random = np.random.default_rng(1)
    tensors = {name: ArrayTensor(random.standard_normal(shape).astype(np.float32))
               for name, shape in graph.weights.items()}
    return Checkpoint(Path("tied.bin"), config, tensors, CANONICAL)


def having(checkpoint: Checkpoint, output: Tensor) -> Checkpoint:
    return replace(checkpoint, tensors={**checkpoint.tensors, "output.weight": output})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_copy_is_left_out_and_another_matrix_is_refused(host: Host, name: str) -> None:
    checkpoint, family = tied(host, name), host.architectures[name]
    embedding = checkpoint.tensors["token_embd.weight"].array()
    copy = Counted(embedding)
    assert "output.weight" not in to_canonical(having(checkpoint, copy), family)[0].tensors
    assert 0 < copy.rows_read <= 16
    other = np.random.default_rng(2).standard_normal(embedding.shape).astype(np.float32)
    for wrong in (other, other[:-1], np.full_like(other, np.nan)):
        with pytest.raises(BestiaryError, match="output.weight.*tie_word_embeddings to false"):
            to_canonical(having(checkpoint, ArrayTensor(wrong)), family)


def test_a_copy_in_another_type_is_one(host: Host) -> None:
    checkpoint, family = tied(host, "llama"), host.architectures["llama"]
    embedding = checkpoint.tensors["token_embd.weight"].array()
    other = np.random.default_rng(2).standard_normal(embedding.shape).astype(np.float32)
    for name in ("f16", "bf16", "q8_0", "q4_0"):
        quantizer = host.quantizers[name]
        for values, right in ((embedding, True), (other, False)):
            output = BlockTensor(quantizer.quantize(values), values.shape, quantizer.encoding)
            if right:
                assert "output.weight" not in to_canonical(having(checkpoint, output), family)[0].tensors
                continue
            with pytest.raises(BestiaryError, match="no copy of the embedding"):
                to_canonical(having(checkpoint, output), family)
