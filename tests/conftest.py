"""One torch thread, the same random examples every time, no file outside of temporary folders."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# A failure that appears once in a hundred runs helps nobody who did not cause it. To look for new
# ones: pytest --hypothesis-profile=explore
settings.register_profile("repeatable", derandomize=True, database=None)
settings.register_profile("explore", settings.get_profile("default"))
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_configuration(tmp_path_factory):
    """The key of the ledger is made here, not in the configuration of whoever runs the tests."""
    before = os.environ.get("XDG_CONFIG_HOME")
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))
    yield
    if before is None:
        del os.environ["XDG_CONFIG_HOME"]
    else:
        os.environ["XDG_CONFIG_HOME"] = before
