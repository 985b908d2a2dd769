"""What is written for other programs, read by them: transformers finds the logits it had, torch the weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bestiary.saving import save_as
from tests.parity import test_families_parity, test_llama_kin_parity, test_llama_parity

if TYPE_CHECKING:
    from tests.parity.conftest import Parity

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: ("LlamaForCausalLM", {**test_llama_parity.BASE, **changes})
       for name, changes in test_llama_parity.VARIANTS.items()},
    **test_families_parity.MODELS, **test_llama_kin_parity.MODELS}
BOUND = 1e-5
"""Over the spread of the logits. The weights are the same but for the last bit of norms that are stored less 1."""
IN_NO_KEY = ("listed", "qwen2", "qwen3", "cap", "scalar", "goes on", "falcon rw", "glm", "another scale", "erf",
             "unscaled", "one after")
"""Variants that no key of a GGUF file tells from their families' usual form: only the embedded config does. (A GLM is
taken for a ChatGLM, which transformers does not read.)"""


def read_by_transformers(folder: Path, ids: Any) -> Any:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor(np.asarray(ids))[None]).logits[0].numpy()


@pytest.mark.parametrize("name", MODELS)
def test_transformers_finds_the_same_logits_in_a_folder_that_was_a_file(parity: Parity, name: str,
                                                                        tmp_path: Path) -> None:
    reference = parity.reference(f"back {name}", *MODELS[name])
    save_as(reference.path, tmp_path / "m.gguf", "f32", parity.host)
    save_as(tmp_path / "m.gguf", tmp_path / "folder", None, parity.host, format="huggingface")
    assert reference.difference(read_by_transformers(tmp_path / "folder", reference.ids)) < BOUND


@pytest.mark.parametrize("name", [name for name in MODELS if not any(word in name for word in IN_NO_KEY)])
def test_so_it_does_where_the_file_has_no_embedded_config(parity: Parity, name: str, tmp_path: Path) -> None:
    """As in those of llama.cpp's converter."""
    reference = parity.reference(f"back {name}", *MODELS[name])
    save_as(reference.path, tmp_path / "m.gguf", "f32", parity.host)
    bare = (tmp_path / "m.gguf").read_bytes().replace(b"bestiary.config", b"somebody.config")
    (tmp_path / "m.gguf").write_bytes(bare)
    save_as(tmp_path / "m.gguf", tmp_path / "folder", None, parity.host, format="huggingface")
    assert reference.difference(read_by_transformers(tmp_path / "folder", reference.ids)) < BOUND


@pytest.mark.parametrize("type", ["f16", "bf16", "f32"])
def test_torch_reads_metas_form_with_weights_only(parity: Parity, type: str, tmp_path: Path) -> None:
    import torch

    reference = parity.reference("back meta", "LlamaForCausalLM", {**test_llama_parity.BASE, "num_key_value_heads": 2,
                                                                  "tie_word_embeddings": True})
    save_as(reference.path, tmp_path / "meta", type, parity.host, format="meta")
    found = torch.load(tmp_path / "meta" / "consolidated.00.pth", weights_only=True)
    ours = parity.host.open(tmp_path / "meta").tensors
    kinds = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
    assert found.keys() == ours.keys()
    for name, tensor in found.items():
        assert tensor.dtype == (kinds[type] if tensor.ndim > 1 else torch.float32)
        assert np.array_equal(tensor.float().numpy(), ours[name].array()), name
    assert found["output.weight"].data_ptr() == found["tok_embeddings.weight"].data_ptr()


def test_transformers_reads_the_tokenizers_that_are_made_anew(parity: Parity, tmp_path: Path) -> None:
    """Of a vocabulary of pieces and scores."""
    import transformers

    from bestiary.model import load_tokenizer
    from tests.loaders.test_way_back import with_vocabulary

    made = with_vocabulary(parity.host, bos=1, eos=2, add_bos=True, ends=(2,))
    parity.host.writers["huggingface"].save(made, tmp_path / "folder", parity.host)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    ours = load_tokenizer(tmp_path / "folder", host=parity.host)
    for text in ("the bath", "another thing"):
        assert theirs(text)["input_ids"] == ours.encode(text, bos=True)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (1, 2)
