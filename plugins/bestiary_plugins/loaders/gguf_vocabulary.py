"""Tokenizer material in GGUF's metadata: the arrays that llama.cpp reads, and the original files beside them.

Source: llama.cpp src/llama-vocab.cpp for names and defaults.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from bestiary.architecture import PreTokenizer, RankList
from bestiary.checkpoint import TokenizerMaterial, Vocabulary
from bestiary.errors import BestiaryError, short
from bestiary.rank_list import with_vocabulary
from bestiary.sentencepiece_model import BYTE, CONTROL, UNKNOWN, UNUSED
from bestiary.table_tokenizer import MAX_PIECES
from bestiary.tokenizer_builder import build_tokenizer
from bestiary.tokenizer_settings import named_token
from bestiary_plugins.loaders.gguf_metadata import Metadata
from bestiary_plugins.loaders.vocabulary_arrays import arrays_of, unused

ALGORITHMS = {"llama": "bpe", "gpt2": "bytes", "t5": "unigram"}
MODELS = {algorithm: model for model, algorithm in ALGORITHMS.items()}
NO_TOKENIZER = ("none", "no_vocab")
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"bos": 1, "eos": 2, "unknown": 0, "add_bos": True, "space_prefix": True}, "t5": {"space_prefix": True}}
"""What llama.cpp takes where a file says nothing."""
PRE_ADDS_BOS = ("llama3", "llama-v3", "llama-bpe", "tekken")
ENDS = (b"<|eot_id|>", b"<|eom_id|>", b"<|im_end|>", b"<end_of_turn>", b"<|end|>", b"<EOT>")
"""Control tokens that end a turn; files rarely name their ids."""
PAD_SCORE = -10000.0

FILE_KEY = "bestiary.file."
ENDS_KEY = "bestiary.ends"
MOST_ENDS = 1024
# An array of (form, content), since a reader of GGUF shows plain strings to people, and the `gguf` package needs
# seconds for the same bytes as an array of numbers.


def read_material(metadata: Metadata) -> TokenizerMaterial:
    """Everything the metadata says about the tokenizer."""
    files = read_files(metadata)
    model = metadata.text("tokenizer.ggml.model")
    template = metadata.text("tokenizer.chat_template")
    if model is None or model in NO_TOKENIZER:
        return TokenizerMaterial(files=files, chat_template=template)
    if model not in ALGORITHMS:
        raise metadata.wrong("tokenizer.ggml.model", f"is {short(model)}, which is not read; known: "
                                                     + ", ".join(ALGORITHMS))
    pieces = metadata.strings("tokenizer.ggml.tokens")
    if pieces is None:
        raise metadata.wrong("tokenizer.ggml.tokens", "is missing")
    if len(pieces) > MAX_PIECES:
        raise metadata.wrong("tokenizer.ggml.tokens", f"holds {len(pieces)} pieces; {MAX_PIECES} are the most")
    kinds = metadata.integers("tokenizer.ggml.token_type", len(pieces)) or []
    if model == "llama":
        pieces, kinds = repaired(pieces, kinds)
    scores = metadata.reals("tokenizer.ggml.scores", len(pieces)) or []
    default = DEFAULTS.get(model, {})

    def token(name: str) -> int | None:
        given = metadata.integer(f"tokenizer.ggml.{name}_token_id", high=len(pieces) - 1)
        usual: int | None = default.get(name)
        return usual if given is None and usual is not None and usual < len(pieces) else given

    pre = metadata.text("tokenizer.ggml.pre") or ""
    prefix = metadata.flag("tokenizer.ggml.add_space_prefix")
    vocabulary = Vocabulary(
        ALGORITHMS[model], pieces, scores, kinds, metadata.texts("tokenizer.ggml.merges") or (), pre,
        default.get("space_prefix", False) if prefix is None else prefix, token("unknown"),
        metadata.raw("tokenizer.ggml.precompiled_charsmap") or b"",
        metadata.flag("tokenizer.ggml.remove_extra_whitespaces") or False)
    add_bos = metadata.flag("tokenizer.ggml.add_bos_token")
    if add_bos is None:
        add_bos = True if model == "gpt2" and pre in PRE_ADDS_BOS else default.get("add_bos")
    bos, eos = token("bos"), token("eos")
    named = [*(metadata.integers(ENDS_KEY, most=MOST_ENDS) or ()), token("eot"), token("eom")]
    spelled = [i for i, piece in enumerate(pieces) if piece in ENDS and kinds and kinds[i] == CONTROL]
    ends = tuple(dict.fromkeys(i for i in (eos, *named, *spelled) if i is not None))
    if any(not 0 <= i < len(pieces) for i in ends):
        raise metadata.wrong(ENDS_KEY, f"holds {', '.join(map(str, ends[:10]))}; the vocabulary has {len(pieces)} "
                                       "pieces")
    return TokenizerMaterial(
        files=files, vocabulary=vocabulary, bos=bos, eos=eos,
        add_bos=add_bos, add_eos=metadata.flag("tokenizer.ggml.add_eos_token"), ends=ends, chat_template=template)


FIRST_DAY = ["\u2581\u2047\u2581".encode(), b"", b""]
SINCE, SINCE_KINDS = (b"<unk>", b"<s>", b"</s>"), (UNKNOWN, CONTROL, CONTROL)


def repaired(pieces: list[bytes], kinds: list[int]) -> tuple[list[bytes], list[int]]:
    """What the first converter to GGUF wrote, as it has been spelled since: ids 0 to 2 under their names and kinds,
    bytes with both digits."""
    if not kinds:
        return pieces, kinds
    pieces, kinds = list(pieces), list(kinds)
    if pieces[:3] == FIRST_DAY:
        pieces[:3], kinds[:3] = SINCE, SINCE_KINDS
    for i, piece in enumerate(pieces):
        if kinds[i] == BYTE and re.fullmatch(rb"<0x[0-9A-Fa-f]>", piece):
            pieces[i] = b"<0x0%c>" % piece[3]
    return pieces, kinds


def read_files(metadata: Metadata) -> dict[str, bytes]:
    """The original files that the metadata carries."""
    files = {}
    for key in metadata:
        if key.startswith(FILE_KEY):
            parts = metadata.strings(key) or []
            if len(parts) != 2 or parts[0] not in (b"text", b"base64"):
                raise metadata.wrong(key, 'must hold two strings, "text" or "base64" and the content')
            try:
                content = parts[1] if parts[0] == b"text" else base64.b64decode(parts[1], validate=True)
            except binascii.Error:
                raise metadata.wrong(key, "is no base64") from None
            files[key.removeprefix(FILE_KEY)] = content
    return files


def write_files(material: TokenizerMaterial) -> dict[str, tuple[str, Any]]:
    """Metadata key -> (kind, value) for the original files."""
    keys: dict[str, tuple[str, Any]] = {}
    for name, content in material.files.items():
        try:
            content.decode()
            keys[FILE_KEY + name] = ("str[]", [b"text", content])
        except UnicodeDecodeError:
            keys[FILE_KEY + name] = ("str[]", [b"base64", base64.b64encode(content)])
    return keys


def write_material(material: TokenizerMaterial, config: Mapping[str, Any], rows: int | None,
                   pre_tokenizers: Mapping[str, PreTokenizer],
                   rank_lists: Iterable[RankList] = ()) -> dict[str, tuple[str, Any]]:
    """Metadata key -> (kind, value) for the arrays that llama.cpp needs and for the originals.

    rows: of the embedding; the vocabulary is padded to them. pre_tokenizers, rank_lists: as families know them.
    Raises BestiaryError where there are more pieces than rows.
    """
    keys: dict[str, tuple[str, Any]] = {"tokenizer.ggml.model": ("str", NO_TOKENIZER[1])}
    material = with_vocabulary(material, rank_lists)
    vocabulary = arrays_of(material, pre_tokenizers)
    if vocabulary is not None:
        material = material if material.vocabulary is not None else with_roles(material)
        keys = write_arrays(padded(vocabulary, rows), material, padding_of(material, vocabulary, config))
    keys["tokenizer.chat_template"] = ("str", material.chat_template or None)
    keys[ENDS_KEY] = ("u32[]", list(material.ends) or None)
    return {**{name: entry for name, entry in keys.items() if entry[1] is not None}, **write_files(material)}


def with_roles(material: TokenizerMaterial) -> TokenizerMaterial:
    """The material with what its files say about special tokens resolved, by the tokenizer that is made of them."""
    tokenizer = build_tokenizer(material, {})
    ends = tuple(dict.fromkeys(i for i in (tokenizer.eos, *material.ends, *sorted(tokenizer.ends)) if i is not None))
    return replace(material, bos=tokenizer.bos, eos=tokenizer.eos, add_bos=tokenizer.add_bos, add_eos=tokenizer.add_eos,
                   ends=ends)


def padding_of(material: TokenizerMaterial, vocabulary: Vocabulary, config: Mapping[str, Any]) -> int | None:
    """The id of the padding token, where anything names one that exists."""
    given, spelled = config.get("pad_token_id"), named_token(material.files, "pad_token")
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(vocabulary.pieces):
        return given
    pieces = list(vocabulary.pieces)
    return pieces.index(spelled.encode()) if spelled and spelled.encode() in pieces else None


def padded(v: Vocabulary, rows: int | None) -> Vocabulary:
    """With unused pieces up to the rows of the embedding, as llama.cpp wants it."""
    count = len(v.pieces)
    if rows is None or count == rows:
        return v
    if count > rows:
        raise BestiaryError(f"the tokenizer has {count} pieces and the embedding only {rows} rows; they do not belong "
                            "together")
    more = rows - count
    return replace(v, pieces=[*v.pieces, *(unused(i).encode() for i in range(count, rows))],
                   kinds=[*v.kinds, *[UNUSED] * more], scores=[*v.scores, *[PAD_SCORE] * more] if v.scores else ())


def write_arrays(v: Vocabulary, material: TokenizerMaterial, padding: int | None) -> dict[str, tuple[str, Any]]:
    others = [i for i in material.ends if i != material.eos and i < len(v.pieces)]
    eom = [i for i in others if b"eom" in v.pieces[i]]
    eot = [i for i in others if i not in eom]
    byte_level = v.algorithm == "bytes"
    values = {
        "model": ("str", MODELS[v.algorithm]),
        "pre": ("str", (v.pre_tokenizer or "default") if byte_level else v.pre_tokenizer or None),
        "tokens": ("str[]", list(v.pieces)),
        "scores": ("f32[]", list(v.scores) or None),
        "token_type": ("i32[]", list(v.kinds)),
        "merges": ("str[]", [merge.encode() for merge in v.merges] if byte_level else None),
        "bos_token_id": ("u32", material.bos), "eos_token_id": ("u32", material.eos),
        "unknown_token_id": ("u32", v.unknown), "padding_token_id": ("u32", padding),
        "eot_token_id": ("u32", eot[0] if eot else None), "eom_token_id": ("u32", eom[0] if eom else None),
        "add_bos_token": ("bool", material.add_bos), "add_eos_token": ("bool", material.add_eos),
        "add_space_prefix": ("bool", None if byte_level else v.space_prefix),
        "remove_extra_whitespaces": ("bool", v.squeeze_spaces or (False if v.algorithm == "unigram" else None)),
        "precompiled_charsmap": ("u8[]", v.charsmap or None),
    }
    return {f"tokenizer.ggml.{name}": entry for name, entry in values.items()}
