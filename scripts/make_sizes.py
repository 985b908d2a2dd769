"""Writes docs/sizes.md: what models take on disk and in memory, as `bestiary inspect --plan` says.

    python scripts/make_sizes.py $BESTIARY_TEST_DATA

The configs are published ones where the data has them. Of the others the published facts stand here, or in the data.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bestiary.cli.main import main

PAGE = Path(__file__).parents[1] / "docs/sizes.md"
CONTEXT = 2048
TYPES = ("f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
GB, GIB = 10 ** 9, 1 << 30


def llama(width: int, inner: int, layers: int) -> dict[str, Any]:
    """Touvron et al. 2023, table 2; the inner width is 8/3 of the width, rounded up to a multiple of 256."""
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": width,
            "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": width // 128,
            "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6}


class Subject(NamedTuple):
    """A model. config: the facts, the folder of the data that has them, or the key of those collected there.
    tokenizer: the data's file and its name beside a config, where there is one."""

    name: str
    config: dict[str, Any] | str
    tokenizer: tuple[str, str] | None = None


MODELS = (
    Subject("LLaMA-7B", llama(4096, 11008, 32), ("llama-tokenizer.model", "tokenizer.model")),
    Subject("LLaMA-13B", llama(5120, 13824, 40), ("llama-tokenizer.model", "tokenizer.model")),
    Subject("Chimera-7B", "chimera-chat-7b", ("llama-tokenizer.model", "tokenizer.model")),
    Subject("Chinese-Alpaca-7B", "chinese-alpaca-lora-7b", ("chinese-alpaca-tokenizer.model", "tokenizer.model")),
    Subject("Llama3-8B", "Llama3-8B-Chinese-Chat", ("llama3-tokenizer.model", "tokenizer.model")),
    Subject("BLOOMZ-560M", "bloomz-560m"),
    Subject("Phoenix-7B", "bloomz-7b1"),
    Subject("Falcon-7B", "falcon-7b", ("falcon-tokenizer.json", "tokenizer.json")),
    Subject("Falcon-40B", "falcon-40b", ("falcon-tokenizer.json", "tokenizer.json")),
    Subject("ChatGLM-6B", "chatglm-6b", ("chatglm-6b-ice_text.model", "ice_text.model")),
    Subject("ChatGLM2-6B", "chatglm2-6b", ("chatglm2-3-tokenizer.model", "tokenizer.model")),
    Subject("ChatGLM3-6B", "chatglm3-6b", ("chatglm2-3-tokenizer.model", "tokenizer.model")),
)


class Guide(NamedTuple):
    """A size in GB that guides to a model give. old: the file was one of spring 2023. unit: what they seem to have
    meant by GB. twice: the file held the embedding twice."""

    model: str
    type: str
    size: float
    old: bool = False
    unit: int = GB
    twice: bool = False


GUIDES = (
    Guide("Chinese-Alpaca-7B", "f16", 13.77),
    Guide("Chinese-Alpaca-7B", "q4_0", 4.31, old=True),
    Guide("Chimera-7B", "q4_0", 3.9, old=True, unit=GIB),
    Guide("Phoenix-7B", "q4_0", 4.7, old=True, unit=GIB, twice=True),
)

TEXT = f"""# Sizes

What models take on disk and in memory, before they are downloaded. `python scripts/make_sizes.py $BESTIARY_TEST_DATA`
wrote this page; each line is what `bestiary inspect --plan FOLDER -c {CONTEXT} --json` says of a folder that holds the
model's `config.json`, its tokenizer and the index of its shards where they were at hand, and no weights. GB are 10^9
bytes.

## Files

In the types that `convert --outtype` and `quantize` write, tokenizer included. Types smaller than q8_0 keep the output
matrix in q8_0.

{{files}}

## Memory

The cache of {CONTEXT} tokens, and all that a run takes on the cpu backend: weights, an f16 cache of {CONTEXT} tokens,
what is computed of a batch of 512 tokens (of ChatGLM-6B all, for its prompt is one batch), Python, the tokenizer. All
but weights and cache is estimated. Converting and quantizing stream: what they take is Python and the tokenizer, some
hundred MB at most (benchmarks/peak_memory.py measures it).

{{memory}}

The published index of Falcon lists an output matrix of its own, a copy of the embedding, and so the files have it.
Without the index the plan is that of the config, in which the two are one: 6.92 G of weights.

## Sizes in guides

{{guides}}

Those guides seem to be of spring 2023, when a block of 32 weights of q4_0 took 20 bytes, its scale 4 of them, in every
matrix: 5 bits a weight. Ours takes 18, and 34 in the output matrix, which is q8_0. *a file of 2023* is the size of one
of that kind by the same plan. The files of BLOOM's family held the embedding twice, once as the output matrix. The two
figures of one decimal are taken for GiB (2^30 bytes), which many programs that list files call G.
"""


def page(data: Path) -> str:
    """The text of docs/sizes.md."""
    with tempfile.TemporaryDirectory() as place:
        facts = {subject.name: plan(subject, data, Path(place)) for subject in MODELS}
    return TEXT.format(files=table(files(facts)), memory=table(memory(facts)), guides=table(guides(facts)))


def plan(subject: Subject, data: Path, place: Path) -> dict[str, Any]:
    """What the command says of the model."""
    folder, published = place / subject.name, data / "configs" / str(subject.config)
    if isinstance(subject.config, str) and published.is_dir():
        shutil.copytree(published, folder)
    else:
        folder.mkdir()
        collected = json.loads((data / "configs/RECONSTRUCTED.json").read_text())
        config = collected[subject.config] if isinstance(subject.config, str) else subject.config
        (folder / "config.json").write_text(json.dumps(config))
    if subject.tokenizer is not None:
        shutil.copy(data / "tokenizers" / subject.tokenizer[0], folder / subject.tokenizer[1])
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = main(["inspect", "--plan", str(folder), "-c", str(CONTEXT), "--json"])
    if status:
        raise SystemExit(f"{subject.name}: status {status}")
    facts: dict[str, Any] = json.loads(said.getvalue())
    return {**facts, "types": {row["type"]: row for row in facts["types"]}}


def files(facts: dict[str, dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    yield ("model", "weights", *TYPES)
    for name, said in facts.items():
        yield (name, f"{said['weights'] / 1e9:.2f} G", *(gb(said["types"][kind]["bytes"]) for kind in TYPES))


def memory(facts: dict[str, dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    yield ("model", "converting", "cache f16", "cache q8_0", *(f"{kind}, running" for kind in ("f16", "q8_0", "q4_0")))
    for name, said in facts.items():
        yield (name, gb(said["convert_bytes"]), gb(said["cache"]["f16"]), gb(said["cache"]["q8_0"]),
               *(gb(said["types"][kind]["run_bytes"]) for kind in ("f16", "q8_0", "q4_0")))


def guides(facts: dict[str, dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    yield ("model", "type", "in guides", "ours", "differs by", "a file of 2023", "differs by")
    for guide in GUIDES:
        said = facts[guide.model]
        ours = said["types"][guide.type]["bytes"]
        theirs = (old(said, guide.twice) if guide.old else ours) / guide.unit
        yield (guide.model, guide.type, f"{guide.size} GB", gb(ours), f"{ours / GB / guide.size - 1:+.1%}",
               f"{theirs:.2f} {'GB' if guide.unit == GB else 'GiB'}", f"{theirs / guide.size - 1:+.1%}")


def old(said: dict[str, Any], twice: bool) -> float:
    """Bytes of a file of spring 2023: matrices in blocks of 20 bytes, vectors in f32, and of each piece its length, its
    spelling of about 6 bytes and a score."""
    kinds, pieces = said["types"]["f16"]["types"], said["config"]["vocab_size"]
    copy = pieces * said["config"]["hidden_size"] if twice else 0
    return 20 / 32 * (kinds["f16"]["weights"] + copy) + 4 * kinds["f32"]["weights"] + 14 * pieces


def gb(count: float) -> str:
    return f"{count / GB:.2f} GB"


def table(rows: Iterator[tuple[str, ...]]) -> str:
    titles, *lines = rows
    ruled = (titles, ("---", *("---:",) * (len(titles) - 1)), *lines)
    return "\n".join("| " + " | ".join(row) + " |" for row in ruled)


if __name__ == "__main__":
    os.environ["BESTIARY_PLUGINS"] = ""
    PAGE.write_text(page(Path(sys.argv[1])))
