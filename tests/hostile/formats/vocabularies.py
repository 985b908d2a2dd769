"""Tokenizers' own files, llama2.c's checkpoints, and chat templates."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import struct
import tempfile
from pathlib import Path

import numpy as np

from bestiary.architecture import RankList
from bestiary.errors import BestiaryError
from bestiary.host import Host
from bestiary.jinja_template import JinjaTemplate
from bestiary.model import make_tokenizer
from bestiary.rank_list import with_vocabulary
from bestiary.testing.damage import Place, damaged
from tests.hostile.formats import folders
from tests.hostile.formats.sample import MESSAGES, Files, Sample, read_tokenizer, speak


def tokenize(path: Path, loader: str, host: Host) -> None:
    refused = None
    try:
        host.recognise(path)
    except BestiaryError as error:
        refused = error
    read_tokenizer(host.open(path, loader), host)
    if refused:
        raise refused


def varints(data: bytes) -> tuple[list[Place], list[Place]]:
    """The tags and lengths of a file of protobuf's wire format, two levels deep, and its records."""
    fields: list[Place] = []

    def walk(at: int, end: int, depth: int) -> list[Place]:
        pieces = []
        while at < end:
            start, tag = at, data[at]
            fields.append((at, 1))
            at += 1
            if tag & 7 == 2:
                length, shift, begin = 0, 0, at
                while True:
                    length |= (data[at] & 127) << shift
                    shift, at = shift + 7, at + 1
                    if data[at - 1] < 128:
                        break
                fields.append((begin, at - begin))
                if depth and length > 0:
                    walk(at, at + length, depth - 1)
                at += length
            elif tag & 7 == 5:
                fields.append((at, 4))
                at += 4
            else:
                while data[at] > 127:
                    at += 1
                at += 1
            pieces.append((start, at - start))
        return pieces

    pieces = walk(0, len(data), 1)
    return fields, pieces


def sentencepiece() -> Sample:
    import sentencepiece as library

    written, rules = io.BytesIO(), Path(tempfile.gettempdir()) / f"bestiary-rules-{os.getpid()}.tsv"
    rules.write_text("FF21\t41\n2460\t31\n3000\t20\nFB01\t66 69\n")  # as the library's own, and a thousandth as long
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "hello world, hello <x> there", "numbers 1 22"] * 20),
        model_writer=written, model_type="bpe", vocab_size=300, byte_fallback=True, hard_vocab_limit=False,
        user_defined_symbols=["<x>"], minloglevel=2, normalization_rule_tsv=str(rules))
    rules.unlink()
    data = written.getvalue()
    fields, pieces = varints(data)
    special = [place for place in fields if place[0] > len(data) - 400 or place[0] < 120]

    def damage(files: Files, seed: int) -> tuple[str, Files]:
        source = random.Random(f"sentencepiece {seed}")
        how, changed = damaged(data, seed, len(data), special if source.random() < 0.7 else fields, pieces)
        return how, {"x.model": changed}

    return Sample({"x.model": data}, "sentencepiece", "x.model", damage, tokenize)


def tiktoken() -> Sample:
    data = b"".join(base64.b64encode(piece) + b" %d\n" % i for i, piece in enumerate(
        [*(bytes([byte]) for byte in range(256)), b"he", b"ll", b"llo", b"hello"]))
    rules = RankList(size=260, pre_tokenizer="llama-bpe", special=("<s>", "</s>"), bos="<s>", eos="</s>")

    def use(path: Path, loader: str, host: Host) -> None:
        host.loaders[loader].recognise(path)
        material = with_vocabulary(host.open(path, loader).tokenizer, [rules])
        if (tokenizer := make_tokenizer(material, None, {}, host)) is not None:
            speak(tokenizer)

    def damage(files: Files, seed: int) -> tuple[str, Files]:
        source = random.Random(f"tiktoken {seed}")
        if source.random() < 0.5:
            return by_lines(data, source)
        how, changed = damaged(data, seed, 512)
        return how, {"tokenizer.model": changed}

    return Sample({"tokenizer.model": data}, "tiktoken", "tokenizer.model", damage, use)


def by_lines(data: bytes, source: random.Random) -> tuple[str, Files]:
    lines = data.split(b"\n")
    i, j = (source.randrange(source.choice((0, len(lines) - 5)), len(lines) - 1) for _ in range(2))
    piece, rank = lines[i].split()
    line = source.choice((lines[j], piece + b" 99999999999999999999", piece + b" -1", piece + b"=" + rank, piece, b"",
                          base64.b64encode(source.randbytes(source.choice((1, 2, 300, 3000)))) + b" " + rank,
                          b"aGVsbG8 " + rank, b" " + rank, b"=" * 8 + b" " + rank, lines[i] * 2, b"\xff " + rank))
    if source.random() < 0.3:
        lines.append(base64.b64encode(bytes([source.randrange(256)]) * source.choice((2, 50, 1000))) + b" 260")
    else:
        lines[i] = line
    return f"line {i}", {"tokenizer.model": b"\n".join(lines)}


def tokenizer_json() -> Sample:
    data = json.dumps(folders.tokenizer_json()).encode()
    steps = ({"type": "Precompiled", "precompiled_charsmap": "AAAA"},
             {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"},
             {"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "NFKC"},
             {"type": "Sequence", "normalizers": []}, {"type": "Metaspace", "replacement": "xx", "prepend_scheme": "x"},
             {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
             {"type": "Split", "pattern": {"Regex": "(" * 900 + ")" * 900}, "behavior": "Removed", "invert": True},
             {"type": "Split", "pattern": {"Regex": "(a{1,1000}){1,1000}"}, "behavior": "Isolated", "invert": False},
             {"type": "Prepend", "prepend": "x" * 9000}, {"type": "Fuse"}, {"type": "ByteFallback"}, {"type": "Digits"},
             {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "?", "type_id": 0}}], "pair": [],
              "special_tokens": {}}, {"type": "Unigram"}, {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "b"},
             {"type": "Unigram", "unk_id": 99, "vocab": [["a", 0.5]]}, {"type": "Unigram", "unk_id": 0, "vocab": [
                 ["a", -1e308], ["", 5.0]]}, {"type": "BPE", "vocab": {"a": 4294967295}, "merges": ["a a"]},
             {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True},
             {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}, {"type": "Strip", "content": "xy",
                                                                                    "start": 1 << 40, "stop": -1})

    def damage(files: Files, seed: int) -> tuple[str, Files]:
        source = random.Random(f"tokenizer {seed}")
        if source.random() < 0.3:
            value = folders.tokenizer_json()
            for _ in range(source.choice((1, 1, 2))):
                part = source.choice(("normalizer", "pre_tokenizer", "post_processor", "decoder", "model"))
                value[part] = source.choice(steps)
            text = json.dumps(value).encode()
            return f"other {part}", {"tokenizer.json": text if source.random() < 0.7 else damaged(text, seed)[1]}
        how, changed = damaged(data, seed, 3000)
        return how, {"tokenizer.json": changed}

    return Sample({"tokenizer.json": data}, "tokenizer.json", "tokenizer.json", damage, tokenize)


def llama2c_vocabulary() -> bytes:
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256)), b" ", b"H", b"e", b"l",
              b"o", b"He", b"ll", b"llo", b"Hello"]
    return struct.pack("<I", max(map(len, pieces))) + b"".join(
        struct.pack("<fi", -i, len(piece)) + piece for i, piece in enumerate(pieces))


def llama2c_tokenizer() -> Sample:
    data = llama2c_vocabulary()
    fields, pieces, at = [(0, 4)], [], 4
    while at < len(data):
        size = 8 + int.from_bytes(data[at + 4:at + 8], "little")
        fields += [(at, 4), (at + 4, 4)]
        pieces.append((at, size))
        at += size

    def damage(files: Files, seed: int) -> tuple[str, Files]:
        how, changed = damaged(data, seed, 64, fields, pieces)
        return how, {"tokenizer.bin": changed}

    return Sample({"tokenizer.bin": data}, "llama2c-tokenizer", "tokenizer.bin", damage, tokenize)


def llama2c() -> Sample:
    """Versions 0 and 1, in turn."""
    dim, hidden, layers, heads, kv, vocabulary, context = 16, 32, 1, 4, 2, 268, 32
    kv_dim = dim // heads * kv
    shared, first = vocabulary * dim, 2 * layers * dim + dim
    count = shared + first + layers * (2 * dim * dim + 2 * kv_dim * dim + 3 * dim * hidden)
    rng = np.random.default_rng(0)
    numbers = (rng.standard_normal(count) * 0.2).astype(np.float32).tobytes()
    sizes = (dim, hidden, layers, heads, kv, vocabulary, context)
    old = struct.pack("<7i", *sizes) + numbers + bytes(4 * context * dim // heads)
    new = struct.pack("<Ii7iB", 0x616B3432, 1, *sizes, True).ljust(256, b"\0") + numbers

    def damage(files: Files, seed: int) -> tuple[str, Files]:
        source = random.Random(f"llama2c {seed}")
        data, size = (new, 256) if seed % 2 else (old, 28)
        if source.random() < 0.1:
            how, changed = damaged(files["tokenizer.bin"], seed, 64)
            return f"tokenizer: {how}", {"model.bin": data, "tokenizer.bin": changed}
        if source.random() < 0.25:  # a file whose size is that of its header
            changed, how = resized(source, sizes, seed % 2), "another model"
        else:
            how, changed = damaged(data, seed, size, [(4 * i, 4) for i in range(9 if seed % 2 else 7)])
        return how, {**files, "model.bin": changed}

    return Sample({"model.bin": new, "tokenizer.bin": llama2c_vocabulary()}, "llama2.c", "model.bin", damage)


def resized(source: random.Random, sizes: tuple[int, ...], version: int) -> bytes:
    """A whole file of other sizes, its numbers noise."""
    dim, hidden, layers, heads, kv, vocabulary, context = (
        source.choice((size, 1, 2, size - 1, size + 1, size * 2, 3)) for size in sizes)
    context = source.choice((context, 1 << 24, 1 << 20))
    if version == 0:
        context = min(context, 4096)
    width = dim // heads
    count = 2 * layers * dim + dim + vocabulary * dim + layers * (
        dim * heads * width * 2 + 2 * kv * width * dim + 3 * dim * hidden)
    if version == 0:
        count += context * (width // 2) * 2
    head = struct.pack("<7i", dim, hidden, layers, heads, kv, vocabulary, context)
    if version:
        head = (struct.pack("<Ii", 0x616B3432, 1) + head + b"\1").ljust(256, b"\0")
    return head + source.randbytes(4 * count)


SOURCE = ("{{ bos_token }}{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'system' %}"
          "<{{ m['content'] }}>"
          "{% elif m.role in ['user', 'tool'] %}U: {{ m.content | trim }}\n{% else %}A: {{ m.content.split('x')[-1] }}"
          "{{ eos_token }}{% endif %}{% set ns.n = ns.n + loop.index0 %}{% endfor %}{% if add_generation_prompt %}A:"
          "{{ '%d' % ns.n }}{{ messages | tojson }}{{ raise_exception('x') if ns.n > 100 }}{% endif %}")
FRAGMENTS = ("{{", "}}", "{%", "%}", "{#", "#}", "{%-", "-%}", "for", "if", "else", "elif", "endif", "endfor", "set",
             "macro", "endmacro", "call", "endcall", "filter", "endfilter", "block", "include", "import", "extends",
             "raw", "endraw", "in", "not", "and", "or", "is", "(", ")", "[", "]", "{", "}", ".", ",", ":", "|", "~",
             "+", "-", "*", "**", "/", "//", "%", "==", "<", ">", "=", "'x'", "\"y\"", "0", "1", "9", "1e308",
             "range(10)", "range(10**9)", "range(-1)", "loop", "loop.index", "loop.previtem", "loop.cycle(1)",
             "loop(messages)", "messages", "messages[0]", "m", "m.role", "m.content", "namespace", "namespace(a=1)",
             "ns", "ns.n", "bos_token", "none", "true", "self", "cycler", "joiner", "dict", "lipsum()",
             "raise_exception", "strftime_now('%Y')", "tojson", "trim", "upper", "replace('a','b'*99)",
             "replace('','x'*9999)", "join(',')", "length", "list", "sort", "unique", "map", "batch(2)",
             "groupby('role')", "slice(3)", "indent(999999)", "center(10**9)", "format(1)", "'%9999999d'%1",
             "'x'*10**9", "[0]*10**9", "'x'.__class__", ".__mro__", "['__class__']", "|attr('__class__')", ".format",
             ".format_map", ".mro", "'{0.__class__}'.format(1)", ".encode()", ".join(messages)", "selectattr",
             "default(x)", "int('9'*9999)", "float", "abs", "round(2,'floor')", "wordwrap(0)", "truncate(-1)",
             "urlize", "xmlattr", "pprint", "random", "reverse", "sum", "first", "last", "min", "max", "items",
             "dictsort", "recursive", "break", "continue", "do", "with", "endwith", "scoped", "without", "context",
             "autoescape", "2**2**2**2**9", "__globals__", "\u202e", "\\x00", "\\ud800")


def template() -> Sample:
    """Jinja: fragments of the language in any order, and damage to the bytes of a whole template."""
    data = SOURCE.encode()

    def damage(files: Files, seed: int) -> tuple[str, Files]:
        source = random.Random(f"template {seed}")
        if source.random() < 0.75:
            changed = SOURCE
            for _ in range(source.choice((1, 1, 2, 4))):
                at, size = source.randrange(len(changed) + 1), source.choice((0, 0, 1, 3, 8))
                words = [source.choice(FRAGMENTS) for _ in range(source.choice((1, 1, 2, 3)))]
                if source.random() < 0.4:
                    words = source.choice((["{{", *words, "}}"], ["{%", *words, "%}"],
                                           ["{{ messages |", *words[:1], "}}"], ["{{ 'abc' |", *words[:1], "}}"]))
                changed = changed[:at] + source.choice(("", " ")).join(words) + changed[at + size:]
            return "fragments", {"chat.jinja": changed.encode()}
        how, bytes_changed = damaged(data, seed, len(data))
        return how, {"chat.jinja": bytes_changed}

    return Sample({"chat.jinja": data}, "template", "chat.jinja", damage, render)


def render(path: Path, loader: str, host: Host) -> None:
    template = JinjaTemplate(path.read_bytes().decode(errors="replace"), {"bos_token": "<s>", "eos_token": "</s>"})
    template.render(MESSAGES)
    template.render(MESSAGES[1:2])


