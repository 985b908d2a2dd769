"""A tokenizer on the sentencepiece library, from its own model file or from a vocabulary as arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from bestiary.checkpoint import TokenizerMaterial, Vocabulary
from bestiary.errors import BestiaryError
from bestiary.sentencepiece_model import (
    ALGORITHMS,
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
    check_pieces,
    read_model,
    write_model,
    write_specs,
)
from bestiary.table_tokenizer import (
    MAX_GAP,
    AddedToken,
    TableTokenizer,
    around,
    byte_of,
    check_added,
    checked_names,
)
from bestiary.tokenizer_settings import added_tokens, named_token, special_spellings

LISTED = frozenset((UNKNOWN, CONTROL, USER_DEFINED))
"""Kinds of pieces that are no ordinary text."""


class SentencePieceTokenizer(TableTokenizer):
    """Control pieces are never found in a text; user-defined ones always are, as the library does."""

    def __init__(self, model: SentencePieceModel, data: bytes, material: TokenizerMaterial,
                 pieces: int | None = None) -> None:
        """data: the model's file, or what write_model gave for it. pieces: how many of them are the vocabulary's."""
        size = len(model.names) if pieces is None else pieces
        names, kinds = model.names[:size], model.kinds[:size]
        listed = _listed(names, kinds)
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(data)
            own = [None if token < 0 else token for token in (self._processor.bos_id(), self._processor.eos_id())]
        except Exception as error:  # whatever the library finds wrong
            message = str(error).strip().splitlines() or [type(error).__name__]
            raise BestiaryError(f"sentencepiece refuses the tokenizer: {message[-1][:300]}") from None
        self._limit = size if size < len(model.names) else None
        self._bytes = frozenset(i for i, kind in enumerate(kinds) if kind == BYTE)
        self._verbatim = self._bytes | {i for i, kind in enumerate(kinds) if kind == UNKNOWN}
        self._strips, self._squeezes = model.dummy_prefix or model.squeeze_spaces, model.squeeze_spaces
        added = [AddedToken(i, names[i].replace(SPACE, " "), kinds[i] != USER_DEFINED) for i in listed]
        bos, eos, more = _roles(material, names, kinds, own[0], own[1])
        super().__init__(names, _table(model, size), added,
                         around(material, size, bos, eos, () if bos is None else (bos,), (), more))

    def _ids(self, text: str, start: bool) -> list[int]:
        try:
            ids: list[int] = self._processor.encode(text)
        except Exception as error:
            raise BestiaryError(f"sentencepiece cannot encode this text: {str(error)[:300]}") from None
        return ids if self._limit is None else [token for token in ids if token < self._limit]

    def first(self, token: int) -> tuple[bytes, bool]:
        """As the library: the one space put before a text is taken from its first piece, but not from a byte piece;
        where spaces are squeezed, from all pieces until there is some text."""
        data = self.piece(token)
        if not self._strips or not data.startswith(b" ") or token in self._verbatim:
            return data, not data
        return data[1:], self._squeezes and len(data) == 1


def _listed(names: Sequence[str | bytes], kinds: Sequence[int]) -> list[int]:
    """The ids of special and user-defined pieces. Raises BestiaryError where they are too many or too long."""
    listed = [i for i, kind in enumerate(kinds) if kind != NORMAL and kind in LISTED and names[i]]
    check_added(len(listed), sum(len(names[i]) for i in listed), "vocabulary")
    return listed


def _table(model: SentencePieceModel, size: int) -> list[bytes]:
    """What the pieces stand for inside a text."""
    names = model.names[:size]
    table = "\0".join(names).replace(SPACE, " ").encode().split(b"\0")  # all at once: a call for each takes long
    if len(table) != size:  # one holds a NUL
        table = [name.replace(SPACE, " ").encode() for name in names]
    for i, kind in enumerate(model.kinds[:size]):
        if kind == BYTE:
            table[i] = bytes([byte_of(names[i]) or 0])
        elif kind == CONTROL:
            table[i] = b""
        elif kind == UNKNOWN:
            table[i] = model.unknown_surface.encode()
    return table


def _roles(material: TokenizerMaterial, names: Sequence[str], kinds: Sequence[int], bos: int | None,
           eos: int | None) -> tuple[int | None, int | None, set[int]]:
    """bos, eos, and further ends; they come in as the library sees them. The checkpoint's word counts first, then the
    spellings in the settings, then the library's."""
    given = material.bos, material.eos
    if bos is not None and given[0] is not None and 0 <= given[0] < len(kinds) and kinds[given[0]] == UNKNOWN:
        # the first LLaMA conversions said bos 0, eos 1 in config.json, where the model has unknown, bos and eos
        given = None, None
    said = [named_token(material.files, key) for key in ("bos_token", "eos_token")]
    ids = {name: i for i, name in enumerate(names)} if any(said) else {}
    spelled = [ids.get(name or "") for name in said]
    bos, eos = (next((token for token in choice if token is not None), None)
                for choice in zip(given, spelled, (bos, eos), strict=True))
    return bos, eos, {token for token in spelled[1:] if token is not None}


def from_file(data: bytes, material: TokenizerMaterial) -> SentencePieceTokenizer:
    """The tokenizer of a model file, with the tokens that the settings beside it add or make special."""
    model = read_model(data)
    changed = _with_added(model, added_tokens(material.files).values(), special_spellings(material.files))
    if changed is not model:
        data = write_model(changed.names, changed.scores, changed.kinds, changed.rest)
    return SentencePieceTokenizer(changed, data, material)


def _with_added(model: SentencePieceModel, added: Iterable[AddedToken],
                special: frozenset[str]) -> SentencePieceModel:
    """The model with added tokens as pieces of its own: control pieces where they are special, user-defined ones where
    not. The library then handles them, wherever they stand, as transformers does."""
    names, scores, kinds = list(model.names), list(model.scores), list(model.kinds)
    for token in sorted(added, key=lambda token: token.id):
        if token.id >= len(names) + MAX_GAP:
            raise BestiaryError(f"added token {token.text[:40]!r} has id {token.id}, far beyond "
                                f"the {len(names)} pieces of the vocabulary")
        while len(names) <= token.id:  # ids that nothing names: empty control pieces
            names.append("")
            scores.append(0.0)
            kinds.append(CONTROL)
        name = token.text.replace(" ", SPACE)
        same, kind = names[token.id] == name, kinds[token.id]
        names[token.id] = name
        if kind != UNKNOWN and (not same or kind in (NORMAL, UNUSED) or (kind == USER_DEFINED and token.special)):
            kinds[token.id] = CONTROL if token.special else USER_DEFINED
    for i, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        if kind in (NORMAL, UNUSED) and name in special:
            kinds[i] = CONTROL
    if names == model.names and kinds == model.kinds:
        return model
    return replace(model, names=names, scores=scores, kinds=kinds)


def from_vocabulary(vocabulary: Vocabulary, material: TokenizerMaterial) -> SentencePieceTokenizer:
    """The tokenizer of a vocabulary of algorithm "bpe" or "unigram". Raises BestiaryError for one that is damaged."""
    model = model_of(vocabulary, {material.bos, material.eos})
    data = write_model(model.names, model.scores, model.kinds, model.rest)
    return SentencePieceTokenizer(model, data, material, len(vocabulary.pieces))


def model_of(vocabulary: Vocabulary, roles: Collection[int | None]) -> SentencePieceModel:
    """The model that a vocabulary of algorithm "bpe" or "unigram" is. roles: ids that are special in one without kinds.
    Raises BestiaryError for one that is damaged."""
    what = "vocabulary"
    size = len(vocabulary.pieces)
    for name, values in (("scores", vocabulary.scores), ("kinds", vocabulary.kinds)):
        if len(values) not in (0, size):
            raise BestiaryError(f"{what}: {size} pieces but {len(values)} {name}")
    kinds = [int(kind) or NORMAL for kind in vocabulary.kinds]  # 0 stands in some files for "never said"
    _listed(vocabulary.pieces, kinds)
    pieces = list(vocabulary.pieces)
    for i, kind in enumerate(kinds):
        if kind == BYTE and len(pieces[i]) == 1:  # some formats store the byte itself
            pieces[i] = b"<0x%02X>" % pieces[i][0]
    names = checked_names(pieces, what)
    if not kinds:
        kinds = [BYTE if byte_of(name) is not None else CONTROL if i in roles else NORMAL
                 for i, name in enumerate(names)]
    unknown = vocabulary.unknown
    if unknown is None:
        unknown = kinds.index(UNKNOWN) if UNKNOWN in kinds else names.index("<unk>") if "<unk>" in names else None
    elif not 0 <= unknown < size:
        raise BestiaryError(f"{what}: the unknown piece's id {unknown} lies outside its {size} pieces")
    # the library wants exactly one unknown piece
    kinds = [UNKNOWN if i == unknown else CONTROL if kind == UNKNOWN else kind for i, kind in enumerate(kinds)]
    scores = [float(score) for score in vocabulary.scores] or [-float(i) for i in range(size)]
    check_pieces(names, scores, kinds, what)
    if unknown is None:  # one that is not the vocabulary's, and is dropped from what comes out
        names, scores, kinds = [*names, ""], [*scores, 0.0], [*kinds, UNKNOWN]
    algorithm = ALGORITHMS[vocabulary.algorithm]
    rest = write_specs(algorithm, BYTE in kinds, vocabulary.space_prefix, vocabulary.squeeze_spaces,
                       vocabulary.charsmap)
    return SentencePieceModel(names, scores, kinds, rest, algorithm, BYTE in kinds, charsmap=vocabulary.charsmap,
                              dummy_prefix=vocabulary.space_prefix, squeeze_spaces=vocabulary.squeeze_spaces)
