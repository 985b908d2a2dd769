"""The built-in plugins: one module a family, format or backend; a line here makes it known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bestiary.hookspecs import hookimpl

if TYPE_CHECKING:
    from bestiary.plugin import Architecture, Backend, Loader, Quantizer, Writer

# "module:Class", imported when the hook is called: `bestiary --help` must not wait for numpy.
ARCHITECTURES = (
    "architectures.llama:Llama",
    "architectures.mistral:Mistral",
    "architectures.mixtral:Mixtral",
    "architectures.qwen2:Qwen2",
    "architectures.qwen3:Qwen3",
    "architectures.gemma2:Gemma2",
    "architectures.phi3:Phi3",
    "architectures.gpt2:Gpt2",
    "architectures.gpt_neox:GptNeoX",
    "architectures.bloom:Bloom",
    "architectures.falcon:Falcon",
    "architectures.chatglm1:ChatGlm1",
    "architectures.chatglm:ChatGlm",
    "architectures.glm4:Glm4",
)
LOADERS = (
    "loaders.gguf:Gguf",
    "loaders.huggingface:HuggingFace",
    "loaders.meta:Meta",
    "loaders.peft:Peft",
    "loaders.llama2c:Llama2c",
    "loaders.ggml_llama:GgmlLlama",
    "loaders.bloomz_cpp:BloomzCpp",
    "loaders.ggllm_cpp:GgllmCpp",
    "loaders.vocabulary_files:SentencePieceFile",
    "loaders.vocabulary_files:RankListFile",
    "loaders.vocabulary_files:TokenizerJsonFile",
    "loaders.vocabulary_files:Llama2cVocabularyFile",
)
WRITERS = (
    "loaders.gguf_writer:GgufWriter",
    "loaders.huggingface_writer:HuggingFaceWriter",
    "loaders.meta_writer:MetaWriter",
)
QUANTIZERS = (
    "quantizers.plain:PlainF32",
    "quantizers.plain:PlainF16",
    "quantizers.plain:PlainBF16",
    "quantizers.q8_0:QuantizerQ8_0",
    "quantizers.q5_1:QuantizerQ5_1",
    "quantizers.q5_0:QuantizerQ5_0",
    "quantizers.q4_1:QuantizerQ4_1",
    "quantizers.q4_0:QuantizerQ4_0",
)
BACKENDS = (
    "backends.cpu:CpuBackend",
    "backends.numpy:NumpyBackend",
)

COMMANDS = {"demo": f"{__name__}.demo.command:demo"}


def _made(places: tuple[str, ...]) -> Iterator[Any]:
    for place in places:
        module, name = place.split(":")
        yield getattr(import_module(f"{__name__}.{module}"), name)()


@hookimpl
def bestiary_architectures() -> Iterator[Architecture]:
    return _made(ARCHITECTURES)


@hookimpl
def bestiary_loaders() -> Iterator[Loader]:
    return _made(LOADERS)


@hookimpl
def bestiary_writers() -> Iterator[Writer]:
    return _made(WRITERS)


@hookimpl
def bestiary_quantizers() -> Iterator[Quantizer]:
    return _made(QUANTIZERS)


@hookimpl
def bestiary_backends() -> Iterator[Backend]:
    return _made(BACKENDS)


@hookimpl
def bestiary_commands() -> Mapping[str, str]:
    return COMMANDS
