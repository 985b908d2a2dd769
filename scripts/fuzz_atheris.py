#!/usr/bin/env python3
"""Guides damage to files by the code it reaches (atheris, libFuzzer for Python), loader by loader.

    python3.11 -m venv /tmp/atheris && /tmp/atheris/bin/pip install --group test atheris .
    /tmp/atheris/bin/python scripts/fuzz_atheris.py gguf-v3 -- -max_total_time=600

The format is one of scripts/fuzz_files.py; what follows `--` goes to libFuzzer. Inputs that reach something new are
kept in FOLDER/FORMAT (--keep, by default under the temporary folder), and so are crashes; `--minimise` then copies the
smallest inputs that together reach as much into tests/hostile/corpus/FORMAT, which a test replays. An input is what
comes in place of the sample's main file, or, where the format has parts that a checksum guards, of that part.
atheris 3.0 has wheels for CPython 3.11 to 3.13 on Linux; it is no dependency of this project.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "core"), str(ROOT / "plugins")]

import atheris  # noqa: E402  # type: ignore[import-not-found]

with atheris.instrument_imports(include=["bestiary", "bestiary_plugins"]):
    from bestiary.errors import BestiaryError  # noqa: E402
    from bestiary.host import Host, HostSettings  # noqa: E402
    from tests.hostile.formats.corpus import INPUTS, replaced  # noqa: E402
    from tests.hostile.formats.sample import scratch  # noqa: E402

    host = Host(HostSettings(names=()))
    for registry in (host.loaders, host.architectures, host.backends, host.quantizers):
        list(registry.values())  # imported while imports are watched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=sorted(INPUTS))
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "bestiary-corpus")
    parser.add_argument("libfuzzer", nargs="*", help="options of libFuzzer, behind --")
    options = parser.parse_args()
    kept = options.keep / options.format
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
