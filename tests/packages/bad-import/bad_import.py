"""A plugin that needs a module which is not installed."""

import no_such_module  # type: ignore[import-not-found]  # noqa: F401
