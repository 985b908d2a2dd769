#!/usr/bin/env python3
"""Guides damage to files by the code it reaches (atheris, libFuzzer for Python), loader by loader.

    python3.11 -m venv /tmp/atheris && /tmp/atheris/bin/pip install --group test atheris .
    /tmp/atheris/bin/python scripts/fuzz_atheris.py gguf-v3 -- -max_total_time=600

The format is a name of tests/hostile/formats/corpus.py; what follows `--` goes to libFuzzer. Inputs that reach
something new are kept in FOLDER/FORMAT (--keep, by default under the temporary folder), and so are crashes. `--collect`
instead copies some of what was kept, evenly over its sizes, to tests/hostile/corpus/FORMAT, which a test replays. An
input is what comes in place of the sample's main file, or, where a length or a checksum guards a part, of that part.
atheris 3.0 has wheels for CPython 3.11 to 3.13 on Linux; it is no dependency of this project.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "core"), str(ROOT / "plugins")]

import atheris  # noqa: E402  # type: ignore[import-not-found]

with atheris.instrument_imports(include=["bestiary", "bestiary_plugins"]):
    from bestiary.errors import BestiaryError  # noqa: E402
    from bestiary.host import Host, HostSettings  # noqa: E402
    from tests.hostile.formats.corpus import FOLDER, INPUTS, replaced  # noqa: E402
    from tests.hostile.formats.sample import scratch  # noqa: E402

    host = Host(HostSettings(names=()))
    for registry in (host.loaders, host.architectures, host.backends, host.quantizers):
        list(registry.values())  # imported while imports are watched


def collect(kept: Path, corpus: Path, most: int) -> None:
    """All crashes, and of the others every n-th in the order of their size."""
    found = sorted((path for path in kept.iterdir() if path.name != "sample"), key=lambda path: path.stat().st_size)
    crashes = [path for path in found if path.name.startswith("crash-")]
    others = [path for path in found if path not in crashes]
    step = next(step for step in range(1, len(others) + 2)
                if sum(path.stat().st_size for path in others[::step]) <= most)
    corpus.mkdir(parents=True, exist_ok=True)
    for path in crashes + others[::step]:
        shutil.copy(path, corpus)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=sorted(INPUTS))
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "bestiary-corpus")
    parser.add_argument("libfuzzer", nargs="*", help="options of libFuzzer, behind --")
    parser.add_argument("--collect", type=int, metavar="BYTES", help="copy so much of what was kept to the corpus")
    options = parser.parse_args()
    kept = options.keep / options.format
    if options.collect:
        collect(kept, FOLDER / options.format, options.collect)
        return
    kept.mkdir(parents=True, exist_ok=True)
    first = kept / "sample"
    first.write_bytes(INPUTS[options.format]().part)
    with scratch() as folder:
        place = replaced(options.format, host, folder)

        def once(data: bytes) -> None:
            with contextlib.suppress(BestiaryError):
                place(data)

        once(first.read_bytes())
        atheris.Setup([sys.argv[0], str(kept), "-timeout=10", "-rss_limit_mb=1500", f"-artifact_prefix={kept}/crash-",
                       *options.libfuzzer], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
