"""The files of a tokenizer as a Hugging Face folder has them: the original ones, else what a vocabulary as arrays says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bestiary.checkpoint import TokenizerMaterial, Vocabulary
from bestiary.errors import BestiaryError
from bestiary.library_tokenizer import file_of
from bestiary.model import with_rule
from bestiary.rank_list import is_rank_list, with_vocabulary
from bestiary.sentencepiece_model import CONTROL, UNKNOWN, write_model
from bestiary.sentencepiece_tokenizer import model_of
from bestiary.tokenizer_settings import settings

if TYPE_CHECKING:
    from bestiary.architecture import Architecture
    from bestiary.host import Host

SETTINGS = "tokenizer_config.json"


def tokenizer_files(material: TokenizerMaterial, family: Architecture, host: Host) -> dict[str, bytes]:
    """Name -> content. Originals stay as they are; what is lacking beside them is added: of a list of ranks, which few
    programs read, tokenizer.json too, and the chat template. Raises BestiaryError for a vocabulary that is damaged, or
    follows a rule that nobody knows."""
    files = dict(material.files)
    ranks = is_rank_list(files.get("tokenizer.model", b""))
    if "tokenizer.json" not in files and (ranks or "tokenizer.model" not in files):
        material = with_rule(with_vocabulary(material, (*family.rank_lists, *host.rank_lists.values())), family)
        if material.vocabulary is not None:
            files = {**rebuilt(material, material.vocabulary, family, host), **files}
    if material.chat_template is not None and settings(files, SETTINGS).get("chat_template") != material.chat_template:
        files["chat_template.jinja"] = material.chat_template.encode()
    return files


def rebuilt(material: TokenizerMaterial, vocabulary: Vocabulary, family: Architecture, host: Host) -> dict[str, bytes]:
    """A vocabulary's files: tokenizer.json of a byte-level one, tokenizer.model of any other, and the settings."""
    if vocabulary.algorithm != "bytes":
        model = model_of(vocabulary, {material.bos, material.eos})
        special = {i: name for i, (name, kind) in enumerate(zip(model.names, model.kinds, strict=True))
                   if kind in (CONTROL, UNKNOWN) and name}
        said = {"tokenizer_class": "LlamaTokenizer", "legacy": True,
                "unk_token": spelled(vocabulary, vocabulary.unknown),
                "added_tokens_decoder": {str(i): added(name) for i, name in special.items()}}
        return {"tokenizer.model": write_model(model.names, model.scores, model.kinds, model.rest),
                SETTINGS: text({**said, **roles(material, vocabulary)})}
    data, rule = file_of(vocabulary, {**host.pre_tokenizers, **family.pre_tokenizers})
    if rule.prefix_space:
        raise BestiaryError(f"the rule {vocabulary.pre_tokenizer} begins texts with a space, which tokenizer.json "
                            "cannot say")
    data["post_processor"] = around(material, vocabulary)
    return {"tokenizer.json": json.dumps(data, ensure_ascii=False).encode(), SETTINGS: text(
        {"tokenizer_class": "PreTrainedTokenizerFast", **roles(material, vocabulary)})}


def roles(material: TokenizerMaterial, vocabulary: Vocabulary) -> dict[str, Any]:
    """What the settings say of special tokens."""
    return {"bos_token": spelled(vocabulary, material.bos), "eos_token": spelled(vocabulary, material.eos),
            "add_bos_token": material.add_bos, "add_eos_token": material.add_eos,
            "clean_up_tokenization_spaces": False, "chat_template": material.chat_template}


def spelled(vocabulary: Vocabulary, token: int | None) -> str | None:
    if token is None or not 0 <= token < len(vocabulary.pieces):
        return None
    return vocabulary.pieces[token].decode("utf-8", "replace")


def added(name: str) -> dict[str, Any]:
    return {"content": name, "special": True, "lstrip": False, "rstrip": False, "single_word": False,
            "normalized": False}


def around(material: TokenizerMaterial, vocabulary: Vocabulary) -> dict[str, Any] | None:
    """What a tokenizer.json puts before and after a text."""
    bos, eos = spelled(vocabulary, material.bos), spelled(vocabulary, material.eos)
    before = [bos] if material.add_bos and bos is not None else []
    after = [eos] if material.add_eos and eos is not None else []
    if not before and not after:
        return None
    ids = {bos: material.bos, eos: material.eos}
    special: Mapping[str, Any] = {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in before + after}

    def template(*texts: str) -> list[dict[str, Any]]:
        """Of one text, or of a pair."""
        return [part for kind, text in enumerate(texts) for part in (
            *({"SpecialToken": {"id": name, "type_id": kind}} for name in before),
            {"Sequence": {"id": text, "type_id": kind}},
            *({"SpecialToken": {"id": name, "type_id": kind}} for name in after))]

    return {"type": "TemplateProcessing", "single": template("A"), "pair": template("A", "B"),
            "special_tokens": dict(special)}


def text(value: Mapping[str, Any]) -> bytes:
    """An object as the files of such folders are written, without what is not said."""
    return (json.dumps({key: item for key, item in value.items() if item is not None}, indent=2, ensure_ascii=False)
            + "\n").encode()
