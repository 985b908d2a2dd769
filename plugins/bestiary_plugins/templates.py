"""Chat formats of models that come without a template, as their authors' programs build them.

Sources: tatsu-lab/stanford_alpaca train.py; ymcui/Chinese-LLaMA-Alpaca scripts/inference; ymcui/Chinese-LLaMA-Alpaca-2
prompts/alpaca-2.txt and scripts/llama-cpp/chat.sh; facebookresearch/llama llama/generation.py; meta-llama/llama-models
models/llama3/chat_format.py; lm-sys/FastChat fastchat/conversation.py; FreedomIntelligence/LLMZoo llmzoo/utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from bestiary.plugin import Template, TurnTemplate

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

OF_LLAMA: Mapping[str, Template] = {template.name: template for template in (
    ALPACA, CHINESE_ALPACA, CHINESE_ALPACA_2, LLAMA2, LLAMA3, VICUNA_V0, VICUNA_V11, PHOENIX)}
"""Formats that models of LLaMA's graph were taught."""
