"""A tiny backbone, a tiny store and a tiny task with missing labels."""

import numpy as np
import pytest
import torch

from autopeft.backbones.describe import random_backbone
from autopeft.job import Rows
from autopeft.training.images import ImageStore, Rule


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def vit():
    return random_backbone("test_vit", 32)


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """24 gray noise pictures; bright ones have the label."""
    array = np.random.default_rng(0).integers(0, 200, (24, 32, 32, 1)).astype(np.uint8)
    array[12:] += 55
    return ImageStore(tmp_path_factory.mktemp("images-0"), array, Rule())


@pytest.fixture(scope="session")
def rows():
    """20 rows of the store, two images a patient, one unlabelled."""
    index = np.random.default_rng(1).permutation(24)[:20]
    label = (index >= 12).astype(np.float32)[:, None]
    label[3] = np.nan
    return Rows(
        path=np.array([f"{i}.png" for i in index]),
        index=index,
        patient=np.array([f"p{i // 2}" for i in range(20)]),
        label=label,
        groups={"sex": np.array(["sex=F"] * 5 + ["sex=M"] * 15)},
    )
