"""How much memory this process may use at most."""

from __future__ import annotations

import os
from pathlib import Path

CONTROL_GROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where a container sees its own limit, of both generations."""


def memory(limits: tuple[Path, ...] = CONTROL_GROUP) -> int | None:
    """Bytes of the machine, or of the container where that may use fewer; None where the system does not say."""
    found = []
    try:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return None
    for path in limits:
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(found)
