"""A plugin that takes two seconds to import."""

import time
from typing import Any

from bestiary.plugin import hookimpl

time.sleep(2)


@hookimpl
def bestiary_commands() -> Any:
    return {}
