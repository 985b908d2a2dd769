"""Options of old command lines that are refused, and what to do instead."""

from __future__ import annotations

from collections.abc import Mapping

LATER = "not there yet"
CHAIN = "not there; --temp, --top-k, --top-p and --min-p choose among the tokens. Leave it out"
CHAT = "bestiary chat -m MODEL talks in the model's chat format"
FETCHED = "models are not fetched; name one that is here"
TYPES = f"types by tensor are {LATER}; --pure gives every matrix the one type"
BIG = "files for big-endian machines are not written"
SPLIT = f"splitting is {LATER}: one file is written"

RUN = {
    **dict.fromkeys(("--mirostat", "--mirostat-lr", "--mirostat-ent", "--tfs", "--typical", "--xtc-probability",
                     "--dry-multiplier", "--dynatemp-range", "--top-nsigma", "--top-n-sigma"), CHAIN),
    **dict.fromkeys(("--lora", "--lora-base", "--lora-scaled"),
                    "an adapter is put on for good: bestiary merge --base MODEL --lora ADAPTER --target NEW"),
    "--control-vector": LATER,
    **dict.fromkeys(("--grammar", "--grammar-file", "--json-schema"), f"grammars are {LATER}"),
    **dict.fromkeys(("-md", "--model-draft", "--draft"), f"a draft model is {LATER}"),
    **dict.fromkeys(("-cnv", "--conversation", "--chat-template", "--jinja", "-sys", "--system-prompt"), CHAT),
    **dict.fromkeys(("-hf", "-hfr", "--hf-repo", "-mu", "--model-url"), FETCHED),
    "--logit-bias": LATER,
    "--cfg-negative-prompt": LATER,
    "--embedding": f"embeddings are {LATER}",
    "--perplexity": "it is a command of its own: bestiary perplexity -m MODEL -f TEXT",
    "--random-prompt": "not there; -p TEXT gives a prompt",
}
CONVERT = {
    **dict.fromkeys(("--dump", "--dump-single"), "bestiary inspect SRC lists what a checkpoint holds"),
    **dict.fromkeys(("--bigendian", "--big-endian"), BIG),
    **dict.fromkeys(("--split-max-size", "--split-max-tensors"), SPLIT),
    **dict.fromkeys(("--model-name", "--metadata"), f"{LATER}: the name and the metadata are the checkpoint's own"),
    "--vocab-only": f"{LATER}: a vocabulary alone is not written",
    "--remote": FETCHED,
    "--skip-unknown": "not there: to drop what is not understood would be silent damage",
    "--mmproj": "pictures and sound are not there; text models are converted",
}
QUANTIZE = {
    **dict.fromkeys(("--leave-output-tensor", "--output-tensor-type", "--token-embedding-type", "--tensor-type"),
                    TYPES),
    **dict.fromkeys(("--imatrix", "--include-weights", "--exclude-weights"),
                    f"weighing columns by their importance is {LATER}"),
    "--keep-split": SPLIT,
    "--override-kv": LATER,
}
WORDS: Mapping[str, Mapping[str, str]] = {"run": RUN, "convert": CONVERT, "quantize": QUANTIZE}
"""command -> option, with "-" for "_" -> what to do instead."""
