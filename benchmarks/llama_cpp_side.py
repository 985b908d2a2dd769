"""llama.cpp as a program of the benchmark: its C API through the bindings of llama-cpp-python, at its best setting.

Needs neither Bestiary nor the rest of this folder but program.py: any interpreter that has the bindings runs it.
"""

from __future__ import annotations

import ctypes
import itertools
import time
from typing import Any, NamedTuple

import llama_cpp as api
import numpy as np
from program import Program, Test

UBATCH = 512
SPARE = 256  # llama.cpp rounds contexts to multiples


class Setting(NamedTuple):
    """Of a context. unified: the sequences share one buffer of keys and values."""

    flash: bool
    unified: bool

    def __str__(self) -> str:
        return f"flash attention {'on' if self.flash else 'off'}" + (", one buffer" if self.unified else "")


@api.llama_log_callback  # type: ignore[untyped-decorator]
def silent(level: int, text: bytes, data: Any) -> None:
    """A log that nobody reads."""


class Tokens:
    """A llama_batch: `count` tokens, each of one sequence."""

    def __init__(self, count: int) -> None:
        self.batch = api.llama_batch_init(count, 0, 1)
        self.ids = np.ctypeslib.as_array(self.batch.token, (count,))
        self.positions = np.ctypeslib.as_array(self.batch.pos, (count,))
        self.wanted = np.ctypeslib.as_array(self.batch.logits, (count,))
        np.ctypeslib.as_array(self.batch.n_seq_id, (count,))[:] = 1
        self.count = count
        self.of(0)

    def of(self, sequence: int) -> None:
        for i in range(self.count):
            self.batch.seq_id[i][0] = sequence

    def free(self) -> None:
        api.llama_batch_free(self.batch)


class LlamaCpp(Program):
    model: Any = None
    context: Any = None
    extra = True  # buffers of other types, which is repacking
    mode = api.LLAMA_LOAD_MODE_AUTO

    def __init__(self) -> None:
        api.llama_log_set(silent, ctypes.c_void_p(0))
        api.llama_backend_init()
        self.prompt = Tokens(2048)
        self.step = Tokens(1)

    def begin(self, path: str, threads: int, trials: bool) -> str:
        """Tries the weights repacked and as they are."""
        self.trials, taken = False, {True: 0.0}
        for self.extra in (True, False) if trials else ():
            self.open(path, threads, Test("decode", 1))
            taken[self.extra] = 1.0
            for test in (Test("prefill", 128), Test("decode", 8)):
                self.prepare(test)
                taken[self.extra] /= max(self.sample(0.2) for _ in range(3))
            self.close()
        self.extra, self.trials = min(taken, key=taken.__getitem__), trials
        self.open(path, threads, Test("decode", 1))
        return f"repacking {'on' if self.extra else 'off'}"

    def load(self, tiny: str, path: str, threads: int, extra: bool = True, mode: str = "AUTO") -> dict[str, float]:
        self.extra, self.mode = extra, getattr(api, f"LLAMA_LOAD_MODE_{mode}")
        return super().load(tiny, path, threads)

    def open(self, path: str, threads: int, test: Test) -> None:
        settings = api.llama_model_default_params()
        settings.n_gpu_layers, settings.use_extra_bufts, settings.load_mode = 0, self.extra, self.mode
        self.threads = threads
        self.model = api.llama_model_load_from_file(path.encode(), settings)
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {path}")
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.ids = np.random.default_rng(1).integers(0, self.vocabulary, 8192).astype(np.int32)
        self._context(test, Setting(True, False))
        self.test = Test("decode", 1)
        self._steps(1)

    def _steps(self, sequences: int) -> None:
        """A batch with one token of each sequence."""
        self.step.free()
        self.step = Tokens(sequences)
        self.step.wanted[:] = 1
        for i in range(sequences):
            self.step.batch.seq_id[i][0] = i

    def _context(self, test: Test, setting: Setting) -> None:
        """A context for the test, filled to its depth, in place of the last one."""
        self._free()
        settings = api.llama_context_default_params()
        settings.n_ctx = test.sequences * -(-(test.depth + test.tokens) // SPARE) * SPARE
        settings.n_batch, settings.n_ubatch = self.prompt.count, UBATCH
        settings.n_seq_max = test.sequences
        settings.n_threads = settings.n_threads_batch = self.threads
        settings.flash_attn_type = int(setting.flash)
        settings.kv_unified, settings.no_perf = setting.unified, True
        self.context = api.llama_init_from_model(self.model, settings)
        if not self.context:
            raise SystemExit(f"llama.cpp makes no context ({setting})")
        self.memory = api.llama_get_memory(self.context)
        self.test = test

    def _free(self) -> None:
        if self.context:
            api.llama_free(self.context)
        self.context = None

    def prepare(self, test: Test) -> str:
        """Tries attention in its two kinds and, of several sequences, both ways to keep them."""
        self._steps(test.sequences)
        choices = [Setting(*pair) for pair in itertools.product((True, False), (False, True)[:test.sequences])]
        short = test._replace(tokens=8) if test.kind == "decode" else test
        taken = {setting: self._tried(short, setting) for setting in choices} if self.trials else {}
        best = min(taken, key=taken.__getitem__, default=choices[0])
        self._filled(test, best)
        self.once()
        return str(best)

    def _tried(self, test: Test, setting: Setting) -> float:
        self._filled(test, setting)
        self.once()
        runs: list[float] = []
        while sum(runs) < 0.5 and len(runs) < 20:
            started = time.perf_counter()
            self.once()
            runs.append(time.perf_counter() - started)
        return min(runs)

    def _filled(self, test: Test, setting: Setting) -> None:
        self._context(test, setting)
        for sequence in range(test.sequences if test.depth else 0):
            self.prompt.of(sequence)
            self._run(self.ids[:test.depth], 0)
        self.prompt.of(0)

    def once(self) -> int:
        api.llama_memory_seq_rm(self.memory, -1, self.test.depth, -1)
        if self.test.kind == "prefill":
            self._run(self.ids[self.test.depth:][:self.test.tokens], self.test.depth)
            self._logits(1)
            return self.test.tokens
        self.step.ids[:] = self.ids[-1]
        for i in range(self.test.tokens):
            self.step.positions[:] = self.test.depth + i
            self._decode(self.step)
            self.step.ids[:] = np.argmax(self._logits(self.test.sequences), axis=1)
        return self.test.tokens * self.test.sequences

    def _run(self, ids: Any, position: int, all_wanted: bool = False) -> None:
        """Tokens of one sequence; logits after the last or after all."""
        for start in range(0, len(ids), self.prompt.count):
            part = ids[start:start + self.prompt.count]
            count = self.prompt.batch.n_tokens = len(part)
            self.prompt.ids[:count] = part
            self.prompt.positions[:count] = np.arange(position + start, position + start + count)
            self.prompt.wanted[:count] = all_wanted
            self.prompt.wanted[count - 1] = 1
            self._decode(self.prompt, count)

    def _decode(self, tokens: Tokens, count: int | None = None) -> None:
        tokens.batch.n_tokens = tokens.count if count is None else count
        if (status := api.llama_decode(self.context, tokens.batch)) != 0:
            raise SystemExit(f"llama_decode returned {status}")

    def _logits(self, rows: int) -> Any:
        """Those of the last decode, (rows, vocabulary); waits for them."""
        return np.ctypeslib.as_array(api.llama_get_logits(self.context), (rows, self.vocabulary))

    def logits(self, ids: list[int]) -> Any:
        self._context(Test("prefill", len(ids)), Setting(True, False))
        self._run(np.asarray(ids), 0, all_wanted=True)
        return self._logits(len(ids)).copy()

    def close(self) -> None:
        self._free()
        api.llama_model_free(self.model)
        self.model = None

    def quantize(self, source: str, target: str, type: str, all_alike: bool) -> None:
        """Every matrix in the type named, or the mix of types that llama.cpp makes under that name."""
        settings = api.llama_model_quantize_default_params()
        settings.ftype, settings.pure = getattr(api, f"LLAMA_FTYPE_MOSTLY_{type}"), all_alike
        if status := api.llama_model_quantize(source.encode(), target.encode(), settings):
            raise SystemExit(f"llama_model_quantize returned {status} for {type}")

    def facts(self) -> dict[str, str]:
        return {"llama-cpp-python": api.__version__,
                "built with": " ".join(part.split(" = ")[0] for part in
                                       api.llama_print_system_info().decode().replace("CPU :", "").split(" | ")
                                       if part.endswith(" = 1"))}


if __name__ == "__main__":
    LlamaCpp().serve()
