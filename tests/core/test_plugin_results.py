"""What a plugin's items give that is not what was asked for: whose it is, is said, and nothing is written of it."""

from __future__ import annotations

import json
import pickle
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from bestiary.architecture import PromptLayout
from bestiary.checkpoint import Checkpoint
from bestiary.contributions import shown
from bestiary.encoding import Encoding
from bestiary.errors import BestiaryError
from bestiary.guard import calling
from bestiary.host import Host
from bestiary.model import Model, load, load_tokenizer, stands
from bestiary.perplexity import perplexity
from bestiary.saving import save_as
from bestiary.tensor import ArrayTensor, Tensor
from bestiary_plugins.demo.command import model as demo_model
from tests.core.test_plugin_faults import giving, host_of, plugin, run

LYING = """
    import numpy as np
    from dataclasses import replace
    from bestiary.checkpoint import Provenance
    from bestiary.tensor import Tensor
    class Lie(Tensor):
        def __init__(self, base):
            self.shape, self.encoding, self.base = base.shape, base.encoding, base
        def read(self, start, stop):
            rows = self.base.read(start, stop)
            {0}
    class Bad(Odd):
        def open(self, path, host):
            made = host.loaders["gguf"].open(path, host)
            tensors = {{name: Lie(tensor) for name, tensor in made.tensors.items()}}
            {1}
    @hookimpl
    def bestiary_loaders(): return [Bad()]
"""
WHOLE = "return made.having(tensors=tensors)"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model that is shipped, in one file."""
    return save_as(demo_model(), tmp_path_factory.mktemp("small") / "m.gguf", "f16", host_of()).path


def lying(folder: Path, reads: str = "return rows", opens: str = WHOLE) -> Host:
    return host_of(plugin(folder, LYING.format(reads, opens)))


# Loaders


@pytest.mark.parametrize(("reads", "words"), [
    ("return rows.astype('f8')", "gave ndarray of float64 and shape "),
    ("return rows.view(np.int8)", "gave ndarray of int8 and shape "),
    ("return rows[:-1]", "gave ndarray of uint8 and shape "),
    ("return rows[:, :-2]", "gave ndarray of uint8 and shape "),
    ("return rows.reshape(-1)", "gave ndarray of "), ("return None", "gave NoneType None for rows 0 to "),
    ("raise SystemExit(5)", "failed to read tensor .*: SystemExit: 5"),
    ("raise OSError('gone')", "cannot read it: OSError: gone")])
@pytest.mark.parametrize("type", [None, "q8_0"])
def test_a_tensor_that_gives_no_bytes_is_never_written_and_its_loader_is_named(
        tmp_path: Path, small: Path, reads: str, words: str, type: str | None) -> None:
    host = lying(tmp_path, reads)
    with pytest.raises(BestiaryError, match=f"loader odd of mine.py {words}"):
        save_as(small, tmp_path / "out.gguf", type, host, loader="odd")
    assert not (tmp_path / "out.gguf").exists()
    for backend in ("cpu", "numpy"):
        with pytest.raises(BestiaryError, match=f"loader odd of mine.py {words}"):
            load(small, backend, host=host, loader="odd")


def test_a_tensor_of_nobody_in_particular_is_looked_at_too(tmp_path: Path) -> None:
    class Wide(ArrayTensor):
        def read(self, start: int, stop: int) -> Any:
            return super().read(start, stop).astype(np.float64)

    with pytest.raises(BestiaryError, match=r"a tensor \(Wide\) gave ndarray of float64 and shape \(3, 8\) for rows"):
        Wide(np.zeros((3, 2), np.float32)).array()


@pytest.mark.parametrize(("opens", "words"), [
    ("return replace(made, config=[1])", "config is list [1], not a Mapping"),
    ("return replace(made, tensors=[1, 2])", "tensors is list [1, 2], not a Mapping"),
    ("return replace(made, tensors={'x': 1})", "tensors have int 1 for 'x', not a name and a Tensor"),
    ("return replace(made, naming=['x'])", "naming is list ['x'], not a str"),
    ("return replace(made, tokenizer='x')", "tokenizer is str 'x', not a TokenizerMaterial"),
    ("return replace(made, tokenizer=replace(made.tokenizer, bos='1'))", "tokenizer has str '1' for bos, not a int"),
    ("return replace(made, provenance='x')", "provenance is str 'x', not a Provenance in words"),
    ("return replace(made, provenance=Provenance('x', lacks=(1,)))", "provenance is Provenance "),
    ("return replace(made, provenance=Provenance('x', assumed={1: 2}))", "provenance is Provenance "),
    ("for tensor in tensors.values(): tensor.encoding = 'f16'\n            " + WHOLE, "the encoding str 'f16', not "),
    ("for tensor in tensors.values(): tensor.shape = [2]\n            " + WHOLE, "shape list [2], not a tuple of")])
def test_a_checkpoint_with_a_wrong_field_is_its_loaders_error(
        tmp_path: Path, small: Path, opens: str, words: str) -> None:
    with pytest.raises(BestiaryError) as caught:
        lying(tmp_path, opens=opens).open(small, "odd")
    assert str(caught.value).startswith(f"loader odd of mine.py opened {small} and gave a checkpoint whose ")
    assert words in str(caught.value)


def test_a_checkpoint_under_guard_pickles_as_before(small: Path) -> None:
    made = host_of().open(small)
    again: Checkpoint = pickle.loads(pickle.dumps(made))
    name, tensor = next(iter(made.tensors.items()))
    assert type(again.tensors[name]) is type(tensor) and np.array_equal(again.tensors[name].array(), tensor.array())


# Encodings


BAD_ENCODINGS = [
    ("(32,)", "e has neither a layout nor a decoder"), ("(32,), layout='nonsense'", "layout is 'nonsense'; it must be"),
    ("(32,), Layout((Bits(8, (0,), 8),), 0, Factor('f99', Bits(32, (0,), 0)))", "number is 'f99'; known: f32"),
    ("(32,), Layout((Bits(99, (0,), 8),), 48, Factor('f32', Bits(32, (0,), 0)))", "width is 99; it must be"),
    ("(32,), Layout((Bits(8, (0,), 8),), 0, Factor('f32', Bits(32, (256,), 0)))", "reaches bit 288 of plane 0"),
    ("(32,), Layout((Bits(8, (-8,), 8),), 0, Factor('f32', Bits(32, (0,), 0)))", "offsets is -8; it must be"),
    ("(2,), number='f99'", "number is 'f99' in [2] bytes for 32 weights; known, each in a block of its own: f32 in 4")]


@pytest.mark.parametrize(("rest", "words"), BAD_ENCODINGS)
def test_a_quantizer_whose_encoding_nobody_can_read_is_set_aside(tmp_path: Path, rest: str, words: str) -> None:
    code = giving("quantizers", "Fixed()") + f"Fixed.encoding = Encoding('e', 32, {rest})\n"
    (report,) = host_of(plugin(tmp_path, code), entry_points=False).report()
    assert (report.reason or "").startswith("quantizer fixed: its encoding cannot be read: ")
    assert words in (report.reason or "")


@pytest.mark.parametrize(("values", "words"), [
    (np.zeros((1, 3), np.float32), "gave ndarray of float32 and shape (1, 3), not float32 of shape (2, 32)"),
    (np.zeros((2, 32)), "gave ndarray of float64 and shape (2, 32), not"), (None, "gave NoneType None, not")])
def test_what_a_decoder_gives_is_looked_at(values: object, words: str) -> None:
    encoding = Encoding("e", 32, (32,), decoder=lambda rows, columns: values)  # type: ignore[arg-type,return-value]
    with pytest.raises(BestiaryError) as caught:
        encoding.decode(np.zeros((2, 32), np.uint8), 32)
    assert str(caught.value).startswith("the decoder of encoding e gave ") and words in str(caught.value)


# Backends


PLAN = """
    import numpy as np
    from bestiary_plugins.backends.numpy import NumpyBackend, NumpyPlan
    class Other(NumpyPlan):
        def forward(self, batch, cache, output="logits"):
            rows = super().forward(batch, cache, output)
            return {}
    class Bad(NumpyBackend):
        name, rank = "bad", -5
        def compile(self, *given, **named):
            plan = super().compile(*given, **named)
            plan.__class__ = Other
            return plan
    @hookimpl
    def bestiary_backends(): return [Bad()]
"""


@pytest.mark.parametrize(("gives", "words"), [
    ("rows[:, :1]", "of float32 and shape (3, 1)"), ("np.concatenate([rows, rows], 1)", "of float32 and shape (3, 2"),
    ("rows[:, 0]", "of float32 and shape (3,)"), ("rows[:, None]", "of float32 and shape (3, 1, "),
    ("rows.astype(str)", "of <U32 and shape (3, "), ("rows.astype(int)", "of int64 and shape (3, "),
    ("rows.tolist()", "gave list [["), ("None", "gave NoneType None")])
@pytest.mark.parametrize("output", ["logits", "hidden"])
def test_a_forward_that_gives_other_rows_is_its_backends_error(
        tmp_path: Path, small: Path, gives: str, words: str, output: str) -> None:
    made = load(small, "bad", host=host_of(plugin(tmp_path, PLAN.format(gives))))
    with pytest.raises(BestiaryError) as caught:
        (made.logits if output == "logits" else made.hidden)([1, 5, 7])
    assert str(caught.value).startswith("backend bad of mine.py gave ") and words in str(caught.value)


@pytest.mark.parametrize("gives", ["rows * np.nan", "np.where(rows == rows.max(), np.inf, rows)"])
def test_no_perplexity_comes_from_logits_that_are_no_numbers(tmp_path: Path, small: Path, gives: str) -> None:
    made = load(small, "bad", host=host_of(plugin(tmp_path, PLAN.format(gives))))
    with pytest.raises(BestiaryError, match="chunk 1: the logits are not finite: .* or backend bad of mine.py is at"):
        perplexity(made, "Once upon a time there was a dragon. " * 20, 16, chunks=1)


# Families


FAMILY = """
    from bestiary_plugins.architectures.llama import Llama
    class Own(Template):
        name = "own"
        def render(self, messages): {0}
    class Bad(Llama):
        name, templates = "bad", {{"own": Own()}}
        def claims(self, config, tokenizer): return 100
        {1}
    @hookimpl
    def bestiary_architectures(): return [Bad()]
"""


def family(folder: Path, body: str = "pass", renders: str = "return []", name: str = "mine.py") -> Path:
    return plugin(folder, FAMILY.format(renders, body), name)


@pytest.mark.parametrize(("renders", "words"), [
    ("return ['a', 'b']", "gave list ['a', 'b'], not a list of Segments of text"),
    ("return None", "gave NoneType None,"),
    ("return 'text'", "gave str 'text', not"), ("return [Segment(None, True)]", "not a list of Segments of text"),
    ("return [Segment('x', 'y')]", "not a list of Segments of text"),
    ("raise SystemExit(3)", "failed to render messages: SystemExit: 3")])
def test_a_template_that_gives_no_segments_is_named(tmp_path: Path, small: Path, renders: str, words: str) -> None:
    file = family(tmp_path, renders=renders)
    done = run("tokenize", "-m", small, "--chat", "--chat-template", "own", "-p", "x", "--plugin", file)
    assert done.returncode == 1 and done.stderr.startswith("bestiary: error: chat template own of mine.py ")
    assert words in done.stderr
    made = load(small, host=host_of(file))
    with pytest.raises(BestiaryError, match="chat template own of mine.py "):
        made.chat([{"role": "user", "content": "x"}], "own")


def test_a_template_that_fails_is_named_in_a_line(tmp_path: Path, small: Path) -> None:
    file = family(tmp_path, renders="raise ValueError('boo')")
    done = run("tokenize", "-m", small, "--chat", "--chat-template", "own", "-p", "x", "--plugin", file)
    first, second, *_ = done.stderr.splitlines()
    assert first == "bestiary: chat template own of mine.py failed to render messages: ValueError: boo"
    assert second.startswith("Traceback")


LAYOUTS = ["PromptLayout((tuple(-5 for i in ids),), (len(ids),), (1,))",
           "PromptLayout((tuple(range(len(ids))),), (10 ** 12,), (1,))",
           "PromptLayout((tuple(range(len(ids))),), (len(ids),), (1 << 40,))",
           "PromptLayout((tuple('a' for i in ids),), ('a',), (1,))",
           "PromptLayout((tuple(i / 2 for i in ids),), (len(ids),), (1,))",
           "PromptLayout((tuple(range(len(ids))),), (len(ids),), (1,), 'q')",
           "PromptLayout((tuple(range(len(ids))),), (len(ids),), (1,), 99)",
           "PromptLayout((), (), ())", "None"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_that_places_no_tokens_is_its_familys(
        tmp_path: Path, small: Path, layout: str, caplog: pytest.LogCaptureFixture) -> None:
    made = load(small, host=host_of(family(tmp_path, f"def layout(self, ids, config): return {layout}")))
    with pytest.raises((BestiaryError, TypeError)) as caught:
        made.generate([1, 5, 7], max_tokens=1)
    said = [str(caught.value), *(record.getMessage() for record in caplog.records)]
    assert any(line.startswith("architecture bad of mine.py ") for line in said)


def test_a_layout_may_count_in_several_streams_and_stand_still() -> None:
    assert stands(PromptLayout(((0, 1, 2), (0, 0, 1)), (3, 2), (0, 1), 2), 3, 100)
    assert stands(PromptLayout((range(3),), (3,), (1,)), 3, 100)  # type: ignore[arg-type]


WRAPS = """def wrap(self, tokenizer, config):
            class Own(WrappedTokenizer):
                def {}
            return Own(tokenizer)"""


@pytest.mark.parametrize(("method", "words"), [
    ("encode(self, text, bos=False, special=False): return ['a', None]", "gave list ['a', None] for ids, not a list"),
    ("encode(self, text, bos=False, special=False): return 'abc'", "gave str 'abc' for ids"),
    ("encode(self, text, bos=False, special=False): raise SystemExit(4)", "failed to tokenize: SystemExit: 4"),
    ("piece(self, token): return 'text'", "gave str 'text' as a piece, not bytes")])
def test_a_tokenizer_around_another_is_its_familys(tmp_path: Path, small: Path, method: str, words: str) -> None:
    found = load_tokenizer(small, host_of(family(tmp_path, WRAPS.format(method))))
    with pytest.raises(BestiaryError) as caught:
        found.decode([found.piece(token)[0] for token in found.encode("Once upon a time")])
    assert str(caught.value).startswith("architecture bad of mine.py") and words in str(caught.value)


def test_a_tokenizer_whose_ends_are_no_ids_is_its_familys(tmp_path: Path, small: Path) -> None:
    body = "def wrap(self, tokenizer, config):\n            tokenizer = WrappedTokenizer(tokenizer)\n" \
           "            tokenizer.ends = frozenset(('a',))\n            return tokenizer"
    with pytest.raises(BestiaryError, match="architecture bad of mine.py: its tokenizer gave list .* for ends, not a"):
        load_tokenizer(small, host_of(family(tmp_path, body)))


def test_a_function_that_a_graph_calls_and_is_not_there_is_its_familys(tmp_path: Path, small: Path) -> None:
    body = """def graph(self, config, context):
            g, c = Trace(), config
            x = g.embed("token_embd.weight", c["vocab_size"], c["hidden_size"])
            return g.finish(g.call("no.such:function", x, width=c["vocab_size"]), hidden=x)
        ignorable = (".*",)"""
    with pytest.raises(BestiaryError, match="architecture bad of mine.py: operation no.such:function: there is no mod"):
        load(small, "numpy", host=host_of(family(tmp_path, body)))


# Names that two give


def llama(folder: Path, claims: int) -> Path:
    body = f"name, templates = 'llama', {{}}\n        def claims(self, config, tokenizer): return {claims}"
    return family(folder, body, name=f"sure{claims}.py")


@pytest.mark.parametrize("does", [load, lambda path, host: save_as(path, path.with_name("again.gguf"), "q8_0", host,
                                                                   force=True)])
def test_the_surest_family_of_a_files_name_is_taken(
        tmp_path: Path, small: Path, does: Callable[..., object], caplog: pytest.LogCaptureFixture) -> None:
    host = host_of(llama(tmp_path, 0))
    made = does(small, host=host)
    if isinstance(made, Model):
        assert type(made.architecture).__module__ == "bestiary_plugins.architectures.llama"
    assert len([record for record in caplog.records if "sure0" in record.getMessage()]) <= 1
    checkpoint = host_of(llama(tmp_path, 99)).open(small)
    sure = host_of(llama(tmp_path, 99))
    assert type(sure.architecture_of(checkpoint.config, checkpoint.tokenizer, "llama")).__name__ == "Bad"
    with pytest.raises(BestiaryError, match="architecture 'llama' is provided by bestiary .* and by sure50.py"):
        does(small, host=host_of(llama(tmp_path, 50)))


def test_a_file_keeps_what_its_familys_keys_say_where_another_has_the_name(tmp_path: Path, small: Path) -> None:
    alone, beside = host_of().open(small), host_of(llama(tmp_path, 0)).open(small)
    assert beside.config == alone.config
    fields = gguf.GGUFReader(save_as(small, tmp_path / "o.gguf", None, host_of(llama(tmp_path, 0))).path).fields
    assert "llama.rope.dimension_count" in fields


# Commands


@pytest.mark.parametrize(("body", "status", "said"), [
    ("def main(): 1 / 0", 1, "bestiary: command 'zz' of mine.py failed to run: ZeroDivisionError: division by zero"),
    ("async def main(): return 9", 1, "bestiary: error: command 'zz' of mine.py is async; a command is called, and"),
    ("def main(x: 'Nope'): pass", 1, "bestiary: command 'zz' of mine.py failed to say its options: NameError: name "),
    ("def main(): raise SystemExit(7)", 7, ""), ("import typer\ndef main(): raise typer.Exit(5)", 5, ""),
    ("def main(): raise BestiaryError('mine')", 1, "bestiary: error: mine")])
def test_a_command_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, status: int,
                                       said: str) -> None:
    (tmp_path / "bestiary_zz.py").write_text(f"from bestiary.plugin import BestiaryError\n{body}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    file = plugin(tmp_path, "@hookimpl\ndef bestiary_commands(): return {'zz': 'bestiary_zz:main'}")
    done = run("zz", "--plugin", file)
    first, *_ = done.stderr.splitlines() or [""]
    assert done.returncode == status and first.startswith(said) and bool(first) == bool(said), done.stderr


# Quantizers


QUANTIZER = """
    class Bad(Quantizer):
        name, encoding = "bad", Encoding("bad", 32, (32,), decoder=len)
        def quantize(self, rows, importance=None): {}
    @hookimpl
    def bestiary_quantizers(): return [Bad()]
"""


@pytest.mark.parametrize(("body", "words"), [
    ("1 / 0", "bestiary: quantizer bad of mine.py failed to quantize .*: ZeroDivisionError: "),
    ("raise StopIteration", "bestiary: error: .*quantizer bad of mine.py failed to quantize .*: StopIteration"),
    ("raise MemoryError('mine')", "bestiary: error: out of memory .quantizer bad of mine.py.: ")])
def test_a_faulty_quantizer_is_named_once_and_nobody_else_is(
        tmp_path: Path, small: Path, body: str, words: str) -> None:
    done = run("convert", small, tmp_path / "o.gguf", "--outtype", "bad", "--plugin",
               plugin(tmp_path, QUANTIZER.format(body)))
    (line,) = [line for line in done.stderr.splitlines() if "mine.py" in line and line.startswith("bestiary: ")]
    assert done.returncode == 1 and re.match(words, line) and "writer" not in done.stderr.partition("Traceback")[0]


def test_a_thread_that_says_it_was_interrupted_is_at_fault() -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with calling("it", "do that"):
                raise KeyboardInterrupt
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert str(errors[0]) == "it failed to do that: KeyboardInterrupt" and isinstance(errors[0], BestiaryError)


def test_of_the_same_fault_in_calls_of_one_work_the_first_is_said(caplog: pytest.LogCaptureFixture) -> None:
    guard = calling("it", "work")
    for kind in (ZeroDivisionError, ZeroDivisionError, ValueError):
        with pytest.raises(kind), guard.also("do a part"):
            raise kind
    assert [record.getMessage() for record in caplog.records] == [
        "it failed to do a part: ZeroDivisionError", "it failed to do a part: ValueError"]


def test_a_fault_that_was_raised_again_as_another_is_not_named_twice(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RuntimeError), calling("outer", "go on"):
        try:
            with calling("inner", "begin"):
                raise ZeroDivisionError
        except ZeroDivisionError as error:
            raise RuntimeError("again") from error
    assert [record.getMessage() for record in caplog.records] == ["inner failed to begin: ZeroDivisionError"]


# Hooks and words


@pytest.mark.parametrize(("code", "words"), [
    ("bestiary_loaders = []", "bestiary_loaders is list [], not a function marked with @hookimpl"),
    ("@hookimpl\nclass bestiary_loaders: pass", "bestiary_loaders is the class bestiary_loaders, not a function")])
def test_what_is_named_like_a_hook_and_is_none_is_said(tmp_path: Path, code: str, words: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"from bestiary.plugin import hookimpl\n@hookimpl\ndef bestiary_writers(): return []\n{code}\n")
    (report,) = host_of(file, entry_points=False).report()
    assert words in (report.reason or "")


def test_an_array_is_shown_by_its_type_and_shape() -> None:
    assert shown(np.zeros((2, 3), np.int16)) == "ndarray of int16 and shape (2, 3)"
    assert json.dumps(shown(np.float32(1))) == '"float32 of float32 and shape ()"'


def test_a_plain_tensor_reads_as_before() -> None:
    tensor: Tensor = ArrayTensor(np.arange(6, dtype=np.float32).reshape(3, 2))
    assert np.array_equal(tensor.decode(1, 2), [[2, 3]])
