"""One torch thread for the whole suite: faster on shared machines, and the same everywhere."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread():
    import torch

    torch.set_num_threads(1)
