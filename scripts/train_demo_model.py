"""Train the demo's model, a LLaMA of about a million weights, and write it as a Hugging Face folder."""

# The shipped model was made by (torch 2.13, transformers 5, sentencepiece 0.2; half an hour on one core that others
# were using too):
#
#     python scripts/train_demo_model.py
#
# Its training loss was 0.308, its held-back loss 0.327 (perplexity 1.387).
#
# It writes `model/` (config, weights in f16, sentencepiece tokenizer), `held_back.txt` (texts of another seed, none of
# them in the training set) and `prompts.json` into the demo's folder. All is seeded: the texts and the tokenizer are
# equal from run to run; weights may differ slightly with the version of torch and the number of threads.

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from demo_text import (
    NAMES_EN,
    NAMES_ZH,
    OBJECTS_EN,
    OBJECTS_ZH,
    PLACES_EN,
    PLACES_ZH,
    book,
    documents,
    story,
    told_story,
)
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

DEMO = Path(__file__).resolve().parent.parent / "plugins" / "bestiary_plugins" / "demo"
SEED, HELD_BACK_SEED = 1, 2
DOCUMENTS = 50_000
HELD_BACK_BYTES = 11_000
CONTEXT = 512
TOKENS = 2048  # a step
# Tokens a row, and the weight of names and things in the loss, from a fraction of the steps on. That a name said once
# is to be said again is learned late or never from long rows, where one token in twenty is a name; from short rows,
# in which names count for more, it takes some hundred steps, and then holds at any length.
STAGES = ((0.0, 64, 5.0), (0.2, 128, 5.0), (0.4, 256, 3.0), (0.6, CONTEXT, 1.0))
BOS, EOS = 1, 2

# Every dimension is a multiple of 32, so that each matrix divides into blocks of 32 weights. The embedding is tied:
# with so few weights a second matrix of vocab_size rows would cost as much as another layer.
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1472,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": CONTEXT,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rms_norm_eps": 1e-05,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.08,
    "tie_word_embeddings": True,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "torch_dtype": "float16",
    "use_cache": True,
}

# The format in which questions are trained. Each question is a document of its own, hence the bos before each.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ bos_token + 'Question: ' + message['content'] + '\\nAnswer:' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('this model knows the roles user and assistant only') }}"
    "{% endif %}{% endfor %}"
)
TOKENIZER_CONFIG: dict[str, Any] = {
    "tokenizer_class": "LlamaTokenizer",
    "legacy": False,
    "add_bos_token": True,
    "add_eos_token": False,
    "add_prefix_space": True,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": None,
    "clean_up_tokenization_spaces": False,
    "model_max_length": CONTEXT,
    "chat_template": CHAT_TEMPLATE,
}
GENERATION_CONFIG: dict[str, Any] = {
    "bos_token_id": BOS, "eos_token_id": EOS, "do_sample": True, "temperature": 0.7, "top_p": 0.95,
}
PROMPTS: list[dict[str, str]] = [
    {"language": "en", "kind": "story", "prompt": "Once upon a time, there was a curious fox named Mira, who lived"},
    {"language": "zh", "kind": "story", "prompt": "从前，有一条害羞的龙，名叫小雨，住在"},
    {"language": "en", "kind": "question", "prompt": "Question: What does the unicorn eat?\nAnswer:"},
    {"language": "zh", "kind": "question", "prompt": "问：刺猬住在哪里？\n答："},
]


def train_tokenizer(texts: list[str]) -> bytes:
    """A sentencepiece BPE model with LLaMA's settings, in which every character of `texts` has a piece."""
    model = io.BytesIO()  # written to memory: a path would end up inside the file
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in texts for line in text.split("\n")]),
        model_writer=model, model_type="bpe", vocab_size=CONFIG["vocab_size"], character_coverage=1.0,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", add_dummy_prefix=True,
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, unk_id=0, bos_id=BOS, eos_id=EOS, pad_id=-1,
        num_threads=1, minloglevel=1,
    )
    return model.getvalue()


def fact_pieces(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """The ids of the pieces of names, objects and places, but for the hundred commonest pieces of `texts` ("the")."""
    counts = Counter(itertools.chain.from_iterable(tokenizer.encode(texts)))
    common = {piece for piece, _ in counts.most_common(100)}
    names = [entry.split(":")[0] for entry in NAMES_EN]
    facts = tokenizer.encode([*names, *NAMES_ZH, *OBJECTS_EN, *OBJECTS_ZH, *PLACES_EN, *PLACES_ZH])
    return torch.tensor(sorted(set(itertools.chain.from_iterable(facts)) - common))


def draw_row(texts: list[list[int]], books: list[list[int]], length: int, rng: random.Random) -> list[int]:
    """`length` + 1 ids: whole documents from the row's start on, or else (one in eight) a window into a book.

    Windows teach what a perplexity over a long text asks: to predict from the middle of a text on.
    """
    row: list[int] = []
    if rng.random() < 0.125:
        ids = rng.choice(books)
        start = rng.randrange(max(1, len(ids) - length + 1))
        row = [BOS, *ids[start : start + length], EOS]
    while len(row) <= length:
        row += [BOS, *rng.choice(texts), EOS]
    return row[: length + 1]


def learning_rate(step: int, steps: int, peak: float) -> float:
    """A linear warm-up over 100 steps, then a cosine to a fiftieth of `peak`."""
    if step < 100:
        return peak * (step + 1) / 100
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - 100) / max(1, steps - 100))))


def held_back_loss(model: Any, ids: list[int]) -> float:
    """Mean negative log-likelihood a token, over windows of CONTEXT ids that each begin with BOS."""
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(ids), CONTEXT - 1):
            window = torch.tensor([[BOS, *ids[start : start + CONTEXT - 1]]])
            logits = model(window).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum"))
            count += window.shape[1] - 1
    return total / count


def repeated_name_loss(model: Any, tokenizer: Any, text: str, names: Sequence[str]) -> float:
    """Mean negative log-likelihood of a name where its document has said it before: do characters keep theirs?"""
    pieces = {ids[-1] for ids in tokenizer.encode(list(names))}
    losses: list[float] = []
    for document in text.split("\n\n"):
        ids = [BOS, *tokenizer.encode(document)][:CONTEXT]
        with torch.no_grad():
            chances = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        losses += [-float(chances[i - 1, ids[i]]) for i in range(1, len(ids)) if ids[i] in pieces & set(ids[:i])]
    return sum(losses) / len(losses)


def train(model: Any, texts: list[list[int]], books: list[list[int]], facts: torch.Tensor, steps: int,
          report: Callable[[], str]) -> float:
    """Train in place and return the training loss over the last hundred steps, in which all tokens weigh the same."""
    rng = random.Random(SEED)
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    norms = [weight for weight in model.parameters() if weight.dim() == 1]
    # Weight decay keeps weights small and even, which is also what quantizing in blocks likes.
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    losses: list[float] = []
    began = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, 3e-3)
        _, length, fact_weight = [stage for stage in STAGES if stage[0] <= step / steps][-1]
        rows = torch.tensor(  # (rows, length + 1)
            [draw_row(texts, books, length, rng) for _ in range(TOKENS // length)])
        targets = rows[:, 1:].flatten()
        with torch.autocast("cpu", dtype=torch.bfloat16):  # nearly twice as fast; weights and sums stay f32
            logits = model(rows[:, :-1], use_cache=False).logits  # (rows, tokens, vocabulary)
        each = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets, reduction="none")
        weights = 1 + (fact_weight - 1) * torch.isin(targets, facts)
        loss: Any = (each * weights).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 500 == 0 or step + 1 == steps:
            recent = losses[-100:]
            print(f"step {step + 1}/{steps}  {time.monotonic() - began:.0f} s  training loss "
                  f"{sum(recent) / len(recent):.4f}  {report()}", flush=True)
    return sum(losses[-100:]) / len(losses[-100:])


def make_held_back(seen: set[str]) -> str:
    """A book of unseen stories, alternately English and Chinese, told, asked for, or followed by a question."""
    rng = random.Random(HELD_BACK_SEED)
    texts: list[str] = []
    while len(book(texts).encode()) < HELD_BACK_BYTES:
        make = told_story if len(texts) % 4 >= 2 else story
        text = make("en" if len(texts) % 2 == 0 else "zh", rng)
        if text not in seen:
            texts.append(text)
    return book(texts) + "\n"


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=DEMO, help="the folder to write to")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(arguments.threads)
    folder: Path = arguments.output / "model"
    folder.mkdir(parents=True, exist_ok=True)

    texts = list(itertools.islice(documents(SEED), DOCUMENTS))
    held_back = make_held_back(set(texts))
    (arguments.output / "held_back.txt").write_text(held_back, encoding="utf-8", newline="\n")
    write_json(arguments.output / "prompts.json", PROMPTS)

    proto = train_tokenizer(texts[:10_000])
    (folder / "tokenizer.model").write_bytes(proto)
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=proto)
    rng = random.Random(SEED)
    book_texts = [book(rng.sample(texts, rng.randint(4, 9))) for _ in range(2_000)]
    ids: list[list[int]] = tokenizer.encode(texts)
    books: list[list[int]] = tokenizer.encode(book_texts)
    held_back_ids: list[int] = tokenizer.encode(held_back)

    config = LlamaConfig(**{key: value for key, value in CONFIG.items() if key != "torch_dtype"})
    model: Any = LlamaForCausalLM(config)
    weights = sum(weight.numel() for weight in model.parameters())
    print(f"{len(texts)} documents, {sum(map(len, ids))} tokens; {weights} weights; "
          f"held back {len(held_back.encode())} bytes, {len(held_back_ids)} tokens", flush=True)

    def report() -> str:
        names_en = repeated_name_loss(model, tokenizer, held_back, [entry.split(":")[0] for entry in NAMES_EN])
        names_zh = repeated_name_loss(model, tokenizer, held_back, NAMES_ZH)
        return (f"held back {held_back_loss(model, held_back_ids):.4f} "
                f"(repeated names: English {names_en:.4f}, Chinese {names_zh:.4f})")

    loss = train(model, ids, books, fact_pieces(tokenizer, texts[:1_000]), arguments.steps, report)

    tensors = {name: weight.to(torch.float16).contiguous() for name, weight in model.state_dict().items()
               if name != "lm_head.weight"}  # tied: stored once, as the embedding
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "generation_config.json", GENERATION_CONFIG)
    write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    write_json(folder / "special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    final = held_back_loss(model, held_back_ids)
    print(f"training loss {loss:.4f}, held-back loss {final:.4f} (perplexity {math.exp(final):.4f})")


if __name__ == "__main__":
    main()
