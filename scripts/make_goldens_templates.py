"""Makes tests/chat/goldens.json: what transformers renders of the templates in tests/chat/jinja_templates.py.

    python scripts/make_goldens_templates.py       (needs transformers 5)
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import transformers
from transformers.utils.chat_template_utils import render_jinja_template

FOLDER = Path(__file__).parents[1] / "tests" / "chat"


def main() -> None:
    known = runpy.run_path(str(FOLDER / "jinja_templates.py"))
    found: dict[str, list[str | None]] = {}
    for name, template in known["TEMPLATES"].items():
        found[name] = []
        for messages in known["CONVERSATIONS"]:
            try:
                texts, _ = render_jinja_template(conversations=[messages], chat_template=template,
                                                 add_generation_prompt=True, **known["SPECIAL"])
                found[name].append(texts[0])
            except Exception as error:
                print(name, error)
                found[name].append(None)  # the template refuses it
    (FOLDER / "goldens.json").write_text(json.dumps(
        {"transformers": transformers.__version__, "texts": found}, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
