"""One process for all emulated kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from worker import Worker


@pytest.fixture(scope="session")
def emulated() -> Iterator[Worker]:
    """Calls a function where Triton compiles."""
    worker = Worker()
    yield worker
    worker.close()
