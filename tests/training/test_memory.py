"""How many images a forward pass may have."""

from types import SimpleNamespace

import pytest
import torch

from autopeft.methods import build, canonical
from autopeft.training import memory
from autopeft.training.fast import Casts, speed_up
from autopeft.training.memory import available, bytes_per_image, free_memory, micro_batch

GB = 2**30


@pytest.mark.parametrize(
    ("batch", "each", "free", "want"),
    [
        (32, 10, 320, 0),  # the whole batch fits
        (32, 10, 319, 16),
        (32, 10, 159, 8),
        (48, 10, 400, 32),
        (32, 10, 19, 1),
        (32, 10, 3, 1),  # it is tried all the same
        (32, 10, None, 0),  # not known
    ],
)
def test_the_micro_batch_is_the_largest_power_of_two_that_fits(batch, each, free, want):
    assert micro_batch(batch, each, free) == want


def adapter(vit, precision="fp32", raw=None):
    lora = {"method": "lora", "blocks": "all", "modules": "all", "r": 8, "lr": 1e-3}
    adapted = build(vit, canonical(raw or lora, vit.facts), 1, 0, 0)
    speed_up(adapted, precision, Casts(vit.model))
    return adapted


def test_what_autograd_keeps_is_counted_once_and_weights_are_not():
    """A chain whose kept tensors can be written down: x -> a = x w -> a w a -> sum."""
    w = torch.nn.Parameter(torch.ones(1))
    model = torch.nn.Module()
    model.w = w

    def logits(x):
        a = x.flatten(1) * w  # keeps x (needed for w) and w
        b = a * w  # keeps a and w
        return (b * a).sum(1, keepdim=True)  # keeps b, and a again

    network = SimpleNamespace(facts=SimpleNamespace(image_size=4), model=model)
    fake = SimpleNamespace(
        network=network, logits=logits, trainable={"w": w}, set_train=lambda flag: None
    )
    image = 3 * 4 * 4 * 4  # bytes
    assert bytes_per_image(fake, "fp32") == int(3 * image * memory.SAFETY)


def test_a_low_format_deeper_blocks_and_fewer_blocks_take_less(vit):
    whole = bytes_per_image(adapter(vit), "fp32")
    assert 0.4 * whole < bytes_per_image(adapter(vit, "bf16"), "bf16") < 0.7 * whole
    last = {"method": "lora", "blocks": 1, "modules": "all", "r": 8, "lr": 1e-3}
    assert bytes_per_image(adapter(vit, raw=last), "fp32") < 0.5 * whole


def test_measuring_leaves_no_gradient_behind(vit):
    adapted = adapter(vit)
    bytes_per_image(adapted, "fp32")
    assert all(p.grad is None for p in adapted.trainable.values())
    assert not any(m.training for m in adapted.network.model.modules())


def machine(tmp_path, free, groups="", files=()):
    """A root with its own ``proc`` and ``sys``."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {free // 1024} kB\n")
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files:
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_without_limits_the_machine_s_own_number_counts(tmp_path):
    assert free_memory(machine(tmp_path, 8 * GB, "0::/\n", [("memory.max", "max")])) == 8 * GB


def test_a_limit_of_version_2_counts_with_files_that_can_be_dropped(tmp_path):
    files = [
        ("a/memory.max", f"{4 * GB}\n"),
        ("a/memory.current", f"{3 * GB}\n"),
        ("a/memory.stat", f"anon {GB}\ninactive_file {GB}\n"),
        ("a/b/memory.max", "max\n"),
    ]
    assert free_memory(machine(tmp_path, 8 * GB, "0::/a/b\n", files)) == 2 * GB  # the parent's


def test_a_limit_of_version_1_counts(tmp_path):
    files = [
        ("memory/x/memory.limit_in_bytes", f"{4 * GB}\n"),
        ("memory/x/memory.usage_in_bytes", f"{3 * GB}\n"),
        ("memory/x/memory.stat", "cache 5\ntotal_inactive_file 0\n"),
    ]
    groups = "9:name=systemd:/\n4:cpu,memory:/x\n"
    assert free_memory(machine(tmp_path, 8 * GB, groups, files)) == GB


def test_in_a_container_the_group_lies_at_the_top(tmp_path):
    files = [
        ("memory.max", f"{2 * GB}\n"),
        ("memory.current", f"{GB}\n"),
        ("memory.stat", "inactive_file 0\n"),
    ]
    assert free_memory(machine(tmp_path, 8 * GB, "0::/docker/abc\n", files)) == GB


def test_another_system_gives_no_number(tmp_path):
    assert free_memory(tmp_path) is None


def test_workers_share_half_of_what_is_free(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 8 * GB)
    assert available(1) == 4 * GB
    assert available(2) == 2 * GB
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    assert available(2) is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (GB, 2 * GB))
    assert available(1, "cuda") == GB // 2
