"""Texts that guides begin a prompt with: the instruction of Stanford Alpaca, the system text of Chinese-Alpaca-2."""

PROMPTS = {
    "alpaca": "Below is an instruction that describes a task. Write a response that appropriately completes the "
              "request.",
    "alpaca-2": "You are a helpful assistant. 你是一个乐于助人的助手。",
}
