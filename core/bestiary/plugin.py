"""The public names that a plugin's author imports."""

from bestiary.architecture import Architecture, Key, KnownVocabulary, PreTokenizer, PromptLayout, RankList, Rule
from bestiary.backend import Backend, Batch, KVCache, Limits, Needs, Plan
from bestiary.encoding import BF16, F16, F32, Bits, Encoding, Factor, Layout
from bestiary.errors import BestiaryError
from bestiary.graph import Graph, Past, Trace, Value
from bestiary.hookspecs import API, hookimpl
from bestiary.loader import Loader, Writer
from bestiary.quantizer import Quantizer
from bestiary.template import Message, Segment, Template, TurnTemplate
from bestiary.tokenizer import Tokenizer
from bestiary.wrapped_tokenizer import WrappedTokenizer

__all__ = [
    "API", "BF16", "F16", "F32", "Architecture", "Backend", "Batch", "BestiaryError", "Bits", "Encoding", "Factor",
    "Graph", "KVCache", "Key", "KnownVocabulary", "Layout", "Limits", "Loader", "Message", "Needs", "Past", "Plan",
    "PreTokenizer", "PromptLayout", "Quantizer", "RankList", "Rule", "Segment", "Template", "Tokenizer", "Trace",
    "TurnTemplate", "Value", "WrappedTokenizer", "Writer", "hookimpl",
]
