"""Tokenizers of old files whose vocabulary is a list of pieces and no more.

The trainer of byte-level BPE numbers pieces in the order in which it found the merges that make them. So the order of
the pieces says what merged when: more than their lengths, by which the programs of the time cut a text, and more than
equal scores would.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from bestiary.checkpoint import Vocabulary
from bestiary.errors import BestiaryError
from bestiary.library_tokenizer import byte_alphabet, from_byte_level
from bestiary.sentencepiece_model import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED

LONGEST, MOST_STEPS = 256, 1 << 26
"""Of pieces whose merge is looked for, in bytes; and pairs that are looked at in all: a hundred times what real
vocabularies need."""
SPECIAL = re.compile(rb"<\|.*\|>|>>.*<<|\[.*\]", re.DOTALL)
LOST = "\ufffd"
CLEANED = (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re")
"""Before these transformers took the space away when it gave a piece as text. No two pieces are the same: of two that
read so the later, which is the rarer, lost it."""
PRIVATE = (0xF0000, 0xFFFFE)
"""Characters of Unicode that are nobody's."""
NEVER_IN_TEXT = (0xC0, 0xC1, *range(0xF5, 0x100))
"""Bytes that UTF-8 does not use: a vocabulary trained on text may be without them."""


def byte_level(pieces: Sequence[bytes], merges: Sequence[str] | None, rule: str) -> Vocabulary:
    """Of pieces that are the bytes they stand for. merges: in GPT-2's alphabet; None where they are to be found by the
    order of the pieces. rule: the name of what splits the text. What no merge makes and looks like a special token is
    one."""
    letters = {byte: char for char, byte in byte_alphabet().items()}

    def spelled(piece: bytes) -> str:
        return "".join([letters[byte] for byte in piece])

    if merges is None:
        merges = [f"{spelled(left)} {spelled(right)}" for left, right in found_merges(pieces)]
    made = {from_byte_level("".join(merge.split(" "))) for merge in merges}
    special = [piece not in made and SPECIAL.fullmatch(piece) is not None for piece in pieces]
    names = [piece if ours else spelled(piece).encode() for piece, ours in zip(pieces, special, strict=True)]
    return Vocabulary("bytes", names, kinds=[CONTROL if ours else NORMAL for ours in special], merges=merges,
                      pre_tokenizer=rule, space_prefix=False)


def found_merges(pieces: Sequence[bytes]) -> Iterable[tuple[bytes, bytes]]:
    """The merge that makes each piece, in order: the two parts that the merges before it leave of the piece. None for a
    piece of which they leave more. Raises BestiaryError where that would take too long."""
    ids: dict[bytes, int] = {}
    for i, piece in enumerate(pieces):
        ids.setdefault(piece, i)
    if sum(min(len(piece), LONGEST) ** 2 for piece in ids) > MOST_STEPS:
        raise BestiaryError(f"a vocabulary of {len(pieces)} pieces without merges, too long for them to be found")
    none = len(pieces)
    for piece, own in ids.items():
        if not 2 <= len(piece) <= LONGEST:
            continue
        parts = [piece[i:i + 1] for i in range(len(piece))]
        ranks = [ids.get(piece[i:i + 2], none) for i in range(len(piece) - 1)]
        while len(parts) > 2:
            best = min(ranks)
            if best >= own:
                break
            at = ranks.index(best)
            parts[at:at + 2] = [parts[at] + parts[at + 1]]
            del ranks[at]
            for i in (at - 1, at):
                if 0 <= i < len(ranks):
                    ranks[i] = ids.get(parts[i] + parts[i + 1], none)
        if len(parts) == 2 and ids.get(parts[0], none) < own > ids.get(parts[1], none):
            yield parts[0], parts[1]


def of_texts(pieces: Sequence[bytes], special: Mapping[int, bytes]) -> Vocabulary:
    """Of pieces of a byte-level BPE as they read one by one: parts of a character became U+FFFD. Whole characters merge
    by the order of the pieces; others are spelled in bytes, where the bytes' own pieces are found by their order.

    special: id -> spelling, 0 being the unknown piece; those that are spelled so are special. Empty pieces at the end
    are none: the embedding has more rows than the tokenizer pieces.
    """
    count = max((i + 1 for i, piece in enumerate(pieces) if piece), default=0)
    texts = [piece.decode("utf-8", "replace").replace("\0", LOST) for piece in pieces[:count]]
    kinds, seen, there, private = [NORMAL] * count, set[str](), set(texts), map(chr, range(*PRIVATE))
    found = byte_pieces(pieces)
    bytes_themselves = set(found.values())
    for i, text in enumerate(texts):
        if i in special and pieces[i] == special[i]:
            kinds[i] = CONTROL if i else UNKNOWN
        elif i in bytes_themselves:
            pass  # below
        elif text in seen and text.startswith(CLEANED) and f" {text}" not in there:
            texts[i] = f" {text}"
        elif text in seen or LOST in text or not text:
            kinds[i] = UNUSED
            texts[i] += next(private, "") if text in seen else ""  # readers want every spelling once
        seen.add(texts[i])
    names = [text.replace(" ", SPACE) for text in texts]
    lacking = [byte for byte in range(256) if byte not in found or byte == ord(" ")]
    if found and len(lacking) <= len(pieces) - count:  # the space, and what no text has, take rows of nothing
        found = {**found, **{byte: count + i for i, byte in enumerate(lacking)}}
        names, kinds = [*names, *[""] * len(lacking)], [*kinds, *[BYTE] * len(lacking)]
        for byte, i in found.items():
            names[i], kinds[i] = f"<0x{byte:02X}>", BYTE
    return Vocabulary("bpe", [name.encode() for name in names], [-float(i) for i in range(len(names))], kinds,
                      space_prefix=False, unknown=kinds.index(UNKNOWN) if UNKNOWN in kinds else None)


def byte_pieces(pieces: Sequence[bytes]) -> dict[int, int]:
    """byte -> id, where the pieces of single bytes stand in the order of GPT-2's alphabet: all of them, or all that
    UTF-8 uses. Empty where they do not. Those of ASCII read as what they are, so nothing is left to chance."""
    start = next((i for i, piece in enumerate(pieces) if piece == b"!"), None)
    for absent in ((), NEVER_IN_TEXT):
        order = [byte for byte in byte_alphabet().values() if byte not in absent]
        wanted = [bytes([byte]) if byte < 0x80 else LOST.encode() for byte in order]
        if start is not None and list(pieces[start:start + len(order)]) == wanted:
            return {byte: start + i for i, byte in enumerate(order)}
    return {}
