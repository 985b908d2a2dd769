"""Chat formats of models that come without a template, as their authors' programs build them.

Sources: tatsu-lab/stanford_alpaca train.py; ymcui/Chinese-LLaMA-Alpaca scripts/inference; ymcui/Chinese-LLaMA-Alpaca-2
prompts/alpaca-2.txt and scripts/llama-cpp/chat.sh; facebookresearch/llama llama/generation.py; meta-llama/llama-models
models/llama3/chat_format.py; lm-sys/FastChat fastchat/conversation.py; FreedomIntelligence/LLMZoo llmzoo/utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bestiary.errors import BestiaryError
from bestiary.plugin import Message, Segment, Template, TurnTemplate

TASK = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
TASK_WITH_INPUT = ("Below is an instruction that describes a task, paired with an input that provides further context. "
                   "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
                   "### Input:\n{input}\n\n### Response:")
HUMAN = ("A chat between a curious human and an artificial intelligence assistant. "
         "The assistant gives helpful, detailed, and polite answers to the human's questions.")
USER = HUMAN.replace("human", "user")
LLAMA2_SYSTEM = "[INST] <<SYS>>\n{system}\n<</SYS>>\n\n"
LLAMA3_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"

ALPACA = TurnTemplate("alpaca", "{system}\n\n", "### Instruction:\n", "\n\n", "### Response:", "</s>",
                      default_system=TASK, with_input=TASK_WITH_INPUT, stop=("### Instruction:",))
# What stands between an answer and the next instruction is llama.cpp's -ins and the authors' own demo: an empty line.
CHINESE_ALPACA = TurnTemplate("chinese-alpaca", "{system}\n\n", "### Instruction:\n\n", "\n\n", "### Response:\n\n",
                              "\n\n", default_system=TASK)
CHINESE_ALPACA_2 = TurnTemplate(
    "chinese-alpaca-2", LLAMA2_SYSTEM, "<s>[INST] ", " [/INST]", "", " </s>", " ", first_user="",
    default_system="You are a helpful assistant. 你是一个乐于助人的助手。")
LLAMA2 = TurnTemplate("llama-2", "<s>" + LLAMA2_SYSTEM, "<s>[INST] ", " [/INST]", "", " </s>", " ", first_user="")
LLAMA3 = TurnTemplate(
    "llama-3", LLAMA3_HEADER.format("system") + "{system}<|eot_id|>", LLAMA3_HEADER.format("user"), "<|eot_id|>",
    LLAMA3_HEADER.format("assistant"), "<|eot_id|>", strips=True, stop=("<|eot_id|>", "<|end_of_text|>"))
VICUNA_V0 = TurnTemplate("vicuna-v0", "{system}\n### ", "Human: ", "\n### ", "Assistant:", "\n### ", " ",
                         default_system=HUMAN, stop=("###",))
VICUNA_V11 = TurnTemplate("vicuna-v1.1", "{system} ", "USER: ", " ", "ASSISTANT:", "</s>", " ", default_system=USER,
                          stop=("</s>",))
PHOENIX = TurnTemplate("phoenix", "{system}\n\n", "Human: <s>", "</s>", "Assistant: <s>", "</s>", default_system=HUMAN,
                       stop=("</s>",))
CHIMERA = replace(PHOENIX, name="chimera")  # one program talks to both

OF_LLAMA: Mapping[str, Template] = {template.name: template for template in (
    ALPACA, CHINESE_ALPACA, CHINESE_ALPACA_2, LLAMA2, LLAMA3, VICUNA_V0, VICUNA_V11, PHOENIX, CHIMERA)}
"""Formats that models of LLaMA's graph were taught."""


@dataclass(frozen=True)
class Rounds(Template):
    """Turns with a number, all one text. first: the number of the first. head: what a round begins with, `{}` standing
    for its number; after_question, after_answer: what follows. bare: a first question without history stands alone."""

    name: str
    first: int
    head: str
    after_question: str
    after_answer: str
    bare: bool = False
    stop: tuple[str, ...] = ()

    def render(self, messages: Sequence[Message]) -> list[Segment]:
        said = [turn.get("content") for turn in messages]
        if len(messages) % 2 == 0 or not all(isinstance(text, str) for text in said) \
                or any(turn.get("role") != ("user", "assistant")[i % 2] for i, turn in enumerate(messages)):
            raise BestiaryError(f"chat template {self.name}: the user and the assistant take turns, each with a text, "
                                "and the last message is the user's; there is no place for a system's")
        if self.bare and len(said) == 1:
            return [Segment(str(said[0]), False)]
        pieces = [self.head.format(self.first + i // 2) + str(text) + self.after_question if i % 2 == 0
                  else str(text) + self.after_answer for i, text in enumerate(said)]
        return [Segment("".join(pieces), False)]


@dataclass(frozen=True)
class Roles(Template):
    """Each message behind the token of its role, the two encoded apart. marks: role -> what that token is spelled."""

    name: str
    marks: Mapping[str, str]
    answer: str
    stop: tuple[str, ...] = ()

    @property
    def tokens(self) -> tuple[str, ...]:
        return (*self.marks.values(), self.answer)

    def render(self, messages: Sequence[Message]) -> list[Segment]:
        pieces: list[Segment] = []
        for turn in messages:
            mark, content = self.marks.get(turn.get("role", "")), turn.get("content")
            if mark is None or not isinstance(content, str):
                raise BestiaryError(f"chat template {self.name}: a message needs a text and one of the roles "
                                    f"{', '.join(self.marks)}")
            pieces += [Segment(mark, True), Segment("\n", False), Segment(content, False)]
        roles = [turn.get("role") for turn in messages]
        if "user" not in roles or roles[-1] in ("system", "assistant"):
            raise BestiaryError(f"chat template {self.name}: there is a message of the user, and the last one is the "
                                "user's or a tool's")
        return [*pieces, Segment(self.answer, True)]
