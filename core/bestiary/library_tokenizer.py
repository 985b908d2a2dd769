"""A tokenizer on the `tokenizers` library, from a tokenizer.json or from a byte-level vocabulary as arrays."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from bestiary.architecture import PreTokenizer
from bestiary.checkpoint import TokenizerMaterial, Vocabulary
from bestiary.errors import BestiaryError, short
from bestiary.library_steps import check_growth, check_steps
from bestiary.sentencepiece_model import CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from bestiary.table_tokenizer import (
    MAX_GAP,
    MAX_PIECE,
    MAX_PIECES,
    AddedToken,
    TableTokenizer,
    around,
    byte_of,
    check_added,
    checked_names,
)
from bestiary.tokenizer_settings import added_tokens, listed_tokens, named_token, read_settings

if TYPE_CHECKING:
    import tokenizers

WHAT = "tokenizer.json"


@contextmanager
def _guarded(what: str) -> Iterator[None]:
    """The library reports with several exceptions; a panic of its Rust code is not even an Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, BestiaryError):
        raise
    except BaseException as error:
        raise BestiaryError(f"{what}: {(str(error).strip() or type(error).__name__).splitlines()[0][:300]}") from None


class LibraryTokenizer(TableTokenizer):
    """Added tokens that are not special are found in every text, as the library does; special ones only where they are
    parsed. Truncation, padding and dropout, which a tokenizer.json may ask for, are for training and switched off."""

    def __init__(self, data: dict[str, Any], text: str, material: TokenizerMaterial,
                 prefix_space: bool = False) -> None:
        """data: the tokenizer.json, checked by _checked; text: the same, for the library to read. prefix_space: a
        text that begins with none gets one, before it is split."""
        self._text, self._prefix_space = text, prefix_space
        self._library = _loaded(text)
        added = listed_tokens(data)
        with _guarded(WHAT):
            for token in added:
                if (found := self._library.token_to_id(token.text)) != token.id:
                    raise BestiaryError(f"{WHAT}: added token {token.text[:40]!r} has id {token.id}, but the "
                                        f"library gives it {found}; they must follow the vocabulary's")
            whole = self._library.encode("a")
        names = _names(data, added)
        special = {token.id for token in added if token.special}
        literal = {token.id for token in added}
        to_bytes, self._first = _decoding(data.get("decoder"))
        table = [b"" if i in special else name.encode() if i in literal else to_bytes(name)
                 for i, name in enumerate(names)]
        unknown = data["model"].get("unk_token")
        self._forbidden = special - {i for i, name in enumerate(names) if name == unknown}
        if isinstance(data["model"].get("unk_id"), int):
            self._forbidden -= {data["model"]["unk_id"]}
        # what the file's own post-processor puts around a text; here it is put around once, by encode(bos=True)
        mask, ids = whole.special_tokens_mask, whole.ids
        inner = [i for i, outside in enumerate(mask) if not outside]
        before, after = (tuple(ids[:inner[0]]), tuple(ids[inner[-1] + 1:])) if inner else (tuple(ids), ())
        by_name = {name: i for i, name in enumerate(names)}
        spelled = [by_name.get(named_token(material.files, key) or "") for key in ("bos_token", "eos_token")]
        bos, eos = (next((token for token in choice if token is not None), None) for choice in (
            (material.bos, spelled[0], *before[:1]), (material.eos, spelled[1], *after[-1:])))
        super().__init__(names, table, added, around(
            material, len(names), bos, eos, before, after, [token for token in spelled[1:] if token is not None]))
        # Metaspace of scheme "first" puts its space before the first text only, not before one after a special token
        splits, inside = data.get("pre_tokenizer"), _never_first(data.get("pre_tokenizer"))
        self._inner = self._library if inside == splits else _loaded(json.dumps({**data, "pre_tokenizer": inside}))

    def _ids(self, text: str, start: bool) -> list[int]:
        if self._prefix_space and not text.startswith(" "):
            text = " " + text
        with _guarded("the tokenizer cannot encode this text"):
            ids: list[int] = (self._library if start else self._inner).encode(text, add_special_tokens=False).ids
            if not self._forbidden.isdisjoint(ids):
                ids = self._hidden.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def _hidden(self) -> tokenizers.Tokenizer:
        """The library's tokenizer with its special tokens respelled so that nobody can type them: for vocabularies in
        which an ordinary text can become one (a unigram piece "<s>", say). Rarely needed, hence made late."""
        data = json.loads(self._text)
        model = data["model"]
        new = {token.text: secrets.token_hex(16) for token in listed_tokens(data) if token.id in self._forbidden}
        for token in data["added_tokens"]:
            token["content"] = new.get(token["content"], token["content"])
        if isinstance(model["vocab"], dict):
            model["vocab"] = {new.get(name, name): i for name, i in model["vocab"].items()}
        else:
            model["vocab"] = [[new.get(name, name), score] for name, score in model["vocab"]]
        if "merges" in model:
            model["merges"] = [pair for pair in map(_pair, model["merges"])
                               if "".join(pair) not in new and new.keys().isdisjoint(pair)]
        return _loaded(json.dumps(data))

    def first(self, token: int) -> tuple[bytes, bool]:
        data = self.piece(token)
        return self._first(data), not data


def _loaded(text: str) -> tokenizers.Tokenizer:
    import tokenizers

    with _guarded(WHAT):
        library = tokenizers.Tokenizer.from_str(text)
        library.no_truncation()
        library.no_padding()
        library.encode_special_tokens = True  # "treat their spellings as text", in the library's words
        if getattr(library.model, "dropout", None):
            library.model.dropout = None
    return library


def from_json(source: bytes, material: TokenizerMaterial) -> LibraryTokenizer:
    """The tokenizer of a tokenizer.json, with the tokens that the settings beside it add."""
    data = read_settings(source, WHAT)
    known = {token.id for token in _checked(data)}
    others = {name: content for name, content in material.files.items() if name != WHAT}
    more = [token for _, token in sorted(added_tokens(others).items()) if token.id not in known]
    if not more:
        return LibraryTokenizer(data, source.decode("utf-8-sig"), material)
    data["added_tokens"] = [*(data.get("added_tokens") or []), *map(_entry, more)]
    _checked(data)
    return LibraryTokenizer(data, json.dumps(data), material)


def _entry(token: AddedToken) -> dict[str, Any]:
    return {"id": token.id, "content": token.text, "special": token.special, "lstrip": token.lstrip,
            "rstrip": token.rstrip, "single_word": token.single_word, "normalized": False}


def _checked(data: Mapping[str, Any]) -> list[AddedToken]:
    """The added tokens, once the parts that are read here have the shape they should."""
    model = data.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        entries, ids = list(vocabulary), list(vocabulary.values())
    elif isinstance(vocabulary, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in vocabulary):
        entries, ids = [pair[0] for pair in vocabulary], list(range(len(vocabulary)))
    else:
        raise BestiaryError(f"{WHAT} has no model with a vocabulary")
    check_steps(data, WHAT)
    added = listed_tokens(data)
    check_added(len(added), sum(len(token.text) for token in added), WHAT)
    limit = min(len(entries) + len(added) + MAX_GAP, MAX_PIECES)
    if not entries:
        raise BestiaryError(f"{WHAT}: the vocabulary is empty")
    for name, token in [*zip(entries, ids, strict=True), *((token.text, token.id) for token in added)]:
        if not isinstance(name, str) or len(name) > MAX_PIECE:
            raise BestiaryError(f"{WHAT}: a piece is {short(name, 40)}, no text of at most {MAX_PIECE} characters")
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < limit:
            raise BestiaryError(f"{WHAT}: piece {name[:40]!r} has id {short(token, 20)}; with {len(entries)} pieces "
                                f"ids below {limit} make sense")
    check_merges(data["model"].get("merges") or [], entries, WHAT)
    _check_prefix(data["model"])
    return added


def _check_prefix(model: Mapping[str, Any]) -> None:
    """Where pieces inside a word begin with a mark, the library cuts it off what a merge appends, unlooked at. Raises
    BestiaryError where it is not there."""
    prefix = model.get("continuing_subword_prefix")
    if isinstance(prefix, str) and prefix:
        for merge in model.get("merges") or []:
            right = merge[-1] if isinstance(merge, list) and merge else merge[1:].partition(" ")[2] \
                if isinstance(merge, str) else None
            if not isinstance(right, str) or not right.startswith(prefix):
                raise BestiaryError(f"{WHAT}: the merge {short(merge, 80)} appends no piece that begins with "
                                    f"{short(prefix, 40)}")


def check_merges(merges: Any, names: Iterable[str], what: str) -> None:
    """Raises BestiaryError where there are more merges than ways to cut the pieces in two, or one stands there twice:
    real lists hold one way for each piece, those made of ranks every one that there is."""
    if not isinstance(merges, (list, tuple)):
        raise BestiaryError(f"{what}: the merges are no list")
    ways = sum(max(len(name) - 1, 0) for name in names)
    if len(merges) > min(ways, MAX_PIECES):
        raise BestiaryError(f"{what}: {len(merges)} merges; the pieces can be cut in two in {ways} ways, and at most "
                            f"{MAX_PIECES} make sense")
    if len(set(map(str, merges))) < len(merges):
        raise BestiaryError(f"{what}: a merge stands there twice")


def _names(data: Mapping[str, Any], added: Sequence[AddedToken]) -> list[str]:
    """Spellings by id; empty for ids that nothing has."""
    vocabulary = data["model"]["vocab"]
    by_id = {token: name for name, token in vocabulary.items()} if isinstance(vocabulary, dict) else {
        i: name for i, (name, _) in enumerate(vocabulary)}
    by_id.update((token.id, token.text) for token in added)
    return [by_id.get(i, "") for i in range(max(by_id) + 1)]


def _never_first(data: Any) -> Any:
    """A pre-tokenizer with Metaspace's scheme "first" as "never"."""
    if isinstance(data, list):
        return [_never_first(value) for value in data]
    if isinstance(data, dict):
        return {key: "never" if (key, value) == ("prepend_scheme", "first") else _never_first(value)
                for key, value in data.items()}
    return data


# --- decoding: the library decodes whole sequences; streaming needs the bytes of one token ---

@cache
def byte_alphabet() -> Mapping[str, int]:
    """GPT-2's spelling of bytes: printable ones as themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + i): byte for i, byte in enumerate(others)}}


def from_byte_level(name: str) -> bytes:
    """A spelling in GPT-2's alphabet -> bytes; one with other characters stands for itself, as in the library."""
    alphabet = byte_alphabet()
    try:
        return bytes([alphabet[char] for char in name])
    except KeyError:
        return name.encode()


def _same(data: bytes) -> bytes:
    return data


def _without_space(data: bytes) -> bytes:
    return data.removeprefix(b" ")


def _without_spaces(data: bytes) -> bytes:
    return data.replace(b" ", b"")


def _decoding(decoder: Any) -> tuple[Callable[[str], bytes], Callable[[bytes], bytes]]:
    """What a piece stands for, and what is done to the first piece of a text. Raises BestiaryError, naming it, for a
    decoder under which a token does not stand for the same bytes wherever it is."""
    steps: list[Any] = []
    pending = [decoder]
    while pending:
        step = pending.pop(0)
        if isinstance(step, dict) and step.get("type") == "Sequence" and isinstance(step.get("decoders"), list):
            pending[:0] = step["decoders"]
        else:
            steps.append(step)
    replacements: list[tuple[str, str]] = []
    byte_fallback = byte_level = fused = False
    first = _same
    for step in steps:
        match step:
            case {"type": "ByteLevel"}:
                byte_level = True
            case {"type": "ByteFallback"}:
                byte_fallback = True
            case {"type": "Fuse"}:
                fused = True
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if old:
                replacements.append((old, new))
            case {"type": "Metaspace", "replacement": str(mark)} if mark:
                replacements.append((mark, " "))
                # the library drops every mark of the first token, where it may have put one
                scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
                first = _same if scheme == "never" else _without_spaces
            case {"type": "Strip", "content": " ", "start": 1, "stop": 0} if fused:
                first = _without_space
            case {"type": "Strip", "start": 0, "stop": 0}:
                pass
            case _:
                raise BestiaryError(f"{WHAT}: decoder {json.dumps(step)[:200]} is not implemented; known: ByteLevel, "
                                    "ByteFallback, Fuse, Metaspace, Replace of a text, Strip of one space after Fuse")

    check_growth([max(len(new) / len(old), 1.0) for old, new in replacements], f"{WHAT}: decoder")

    def to_bytes(name: str) -> bytes:
        if byte_level:
            return from_byte_level(name)
        for old, new in replacements:
            name = name.replace(old, new)
        value = byte_of(name) if byte_fallback else None
        return name.encode() if value is None else bytes([value])

    return to_bytes, first


# --- vocabularies as arrays ---

def from_vocabulary(vocabulary: Vocabulary, material: TokenizerMaterial,
                    pre_tokenizers: Mapping[str, PreTokenizer]) -> LibraryTokenizer:
    """The tokenizer of a vocabulary of algorithm "bytes". Raises BestiaryError for one that is damaged or whose
    pre-tokenizer rule is unknown."""
    data, rule = file_of(vocabulary, pre_tokenizers)
    return LibraryTokenizer(data, json.dumps(data), material, rule.prefix_space)


def file_of(vocabulary: Vocabulary, pre_tokenizers: Mapping[str, PreTokenizer]) -> tuple[dict[str, Any], PreTokenizer]:
    """The tokenizer.json that a vocabulary of algorithm "bytes" is, and its pre-tokenizer rule. Raises BestiaryError as
    `from_vocabulary`."""
    rule = pre_tokenizers.get(vocabulary.pre_tokenizer)
    if rule is None:
        known = ", ".join(sorted(pre_tokenizers)) or "none"
        raise BestiaryError(f"unknown pre-tokenizer {vocabulary.pre_tokenizer[:80]!r}; known: {known}")
    size = len(vocabulary.pieces)
    if not 0 < size <= MAX_PIECES:
        raise BestiaryError(f"vocabulary: {size} pieces; between 1 and {MAX_PIECES} make sense")
    if len(vocabulary.kinds) not in (0, size):
        raise BestiaryError(f"vocabulary: {size} pieces but {len(vocabulary.kinds)} kinds")
    names = checked_names(vocabulary.pieces, "vocabulary")
    kinds = [int(kind) for kind in vocabulary.kinds] or [NORMAL] * size
    latest = {name: i for i, name in enumerate(names)}
    entries = {}
    added = []
    for i, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        if not 0 <= kind <= 6:
            raise BestiaryError(f"vocabulary: piece {i} is of kind {kind}; known: 1 to 6")
        if not name or latest[name] != i:
            name = f"<piece {i} of {size}>"  # a space is never in a spelled byte, so no text becomes this
            while name in latest:
                name += ">"
        elif kind in (UNKNOWN, CONTROL, USER_DEFINED):
            added.append(AddedToken(i, name, kind != USER_DEFINED))
        entries[name] = i
    check_added(len(added), sum(len(token.text) for token in added), "vocabulary")
    check_merges(vocabulary.merges, names, "vocabulary")
    merges = [list(_pair(merge)) for merge in vocabulary.merges]
    splits = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
              for pattern in rule.patterns]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    data = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [_entry(token) for token in added],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, level]},
        "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": rule.ignore_merges, "vocab": entries, "merges": merges},
    }
    return data, rule


def _pair(merge: Any) -> tuple[str, str]:
    """The two pieces of a merge, written "a b" or as a list."""
    if isinstance(merge, str):
        if len(merge) > 2 * MAX_PIECE:
            raise BestiaryError(f"vocabulary: a merge is {len(merge)} characters long")
        left, _, right = merge[1:].partition(" ")  # a piece has one character at least, and it may be a space
        left = merge[:1] + left
    else:
        left, right = merge
    if not left or not right:
        raise BestiaryError(f"vocabulary: {str(merge)[:80]!r} is no merge of two pieces")
    return left, right
