"""The backend double keeps the contract of a backend."""

from __future__ import annotations

from double import Double

from bestiary.testing import BackendContract


class TestDouble(BackendContract):
    backend = Double()
    bound = 1e-5
