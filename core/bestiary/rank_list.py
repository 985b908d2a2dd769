"""A tokenizer file that is a list of BPE ranks (tiktoken's form) -> a byte-level vocabulary with merges."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import replace

from bestiary.architecture import RankList
from bestiary.checkpoint import TokenizerMaterial, Vocabulary
from bestiary.errors import BestiaryError
from bestiary.library_tokenizer import byte_alphabet
from bestiary.sentencepiece_model import CONTROL, NORMAL

FILE = "tokenizer.model"
MAX_RANKS = 1 << 20
MAX_BYTES = 1 << 10
"""Of a piece."""


def is_rank_list(data: bytes) -> bool:
    """Whether a tokenizer.model is such a list: lines of a piece in base64 and its rank."""
    return re.match(rb"(?:[A-Za-z0-9+/]+={0,2} \d+\r?\n){2}", data[:4096]) is not None


def with_vocabulary(material: TokenizerMaterial, known: Iterable[RankList]) -> TokenizerMaterial:
    """The material with the vocabulary that its list of ranks is; as it was where it has no such list, or where
    something in it says more. Raises BestiaryError for a damaged list, and for one that is none of the known."""
    data = material.files.get(FILE)
    if data is None or material.vocabulary is not None or "tokenizer.json" in material.files or not is_rank_list(data):
        return material
    ranks = read_ranks(data)
    known = list(known)
    rules = next((rules for rules in known if rules.size == len(ranks)), None)
    if rules is None:
        sizes = ", ".join(str(rules.size) for rules in known) or "none"
        raise BestiaryError(f"{FILE} is a list of {len(ranks)} BPE ranks; lists of that size are not known (known: "
                            f"{sizes}). A folder with tokenizer.json needs no rules")
    ids = {name: len(ranks) + i for i, name in enumerate(rules.special)}
    ends = dict.fromkeys((*material.ends, *(ids[name] for name in (rules.eos, *rules.ends))))
    return replace(
        material, vocabulary=vocabulary_of(ranks, rules),
        bos=ids[rules.bos] if material.bos is None else material.bos,
        eos=ids[rules.eos] if material.eos is None else material.eos,
        add_bos=True if material.add_bos is None else material.add_bos,
        add_eos=False if material.add_eos is None else material.add_eos, ends=tuple(ends))


def read_ranks(data: bytes) -> dict[bytes, int]:
    """Piece -> rank, which is its id; in order, without gaps."""
    lines = data.split()
    if len(lines) % 2 or len(lines) > 2 * MAX_RANKS:
        raise BestiaryError(f"{FILE}: {len(lines)} words are no list of pieces and their ranks")
    ranks: dict[bytes, int] = {}
    for i, (piece, rank) in enumerate(zip(lines[::2], lines[1::2], strict=True)):
        try:
            decoded = base64.b64decode(piece, validate=True)
        except binascii.Error:
            raise BestiaryError(f"{FILE}: {piece[:40]!r} in line {i + 1} is no base64") from None
        if rank != b"%d" % i or not 0 < len(decoded) <= MAX_BYTES or decoded in ranks:
            raise BestiaryError(f"{FILE}: line {i + 1} is damaged: piece {decoded[:40]!r}, rank {rank[:20]!r}")
        ranks[decoded] = i
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise BestiaryError(f"{FILE}: not every byte has a rank")
    return ranks


def vocabulary_of(ranks: dict[bytes, int], rules: RankList) -> Vocabulary:
    """The vocabulary in GPT-2's spelling. Two neighbours merge where their joint piece has a rank, the lowest first: so
    every way to cut a piece in two pieces is a merge, and merges are in the order of what they make."""
    letters = {byte: char for char, byte in byte_alphabet().items()}
    spelled = {piece: "".join(letters[byte] for byte in piece) for piece in ranks}
    merges = []
    for piece in ranks:
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in ranks and piece[i:] in ranks]
        merges += [f"{spelled[left]} {spelled[right]}"
                   for left, right in sorted(cuts, key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))]
    return Vocabulary(
        "bytes", [*(name.encode() for name in spelled.values()), *(name.encode() for name in rules.special)],
        kinds=[*[NORMAL] * len(ranks), *[CONTROL] * len(rules.special)], merges=merges,
        pre_tokenizer=rules.pre_tokenizer, space_prefix=False)
