"""What every backbone must keep: pure asserts, exported by ``autopeft.testing``."""

from __future__ import annotations

import json

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autopeft.backbones.facts import Facts
from autopeft.backbones.network import Network, parameters_at


def check_backbone(network: Network) -> None:
    """Asserts the contract of a backbone on two random images.

    Args:
        network: any network with all its blocks; it is not changed.
    """
    fork = network.fork(3, torch.Generator().manual_seed(0))
    size, first = network.facts.image_size, next(network.model.parameters())
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    x = pixels.to(first.device, first.dtype)
    with torch.no_grad():
        states = _states(fork, x)
        _check_every_start(fork, x, states)
        _check_pools(fork, states)
        _check_drop_blocks(network, x, states)
    _check_facts(network)
    _check_fork(network)
    _check_frozen(fork, x)


def _states(network: Network, x: Tensor) -> list[Tensor]:
    """The states at the boundaries 0..L."""
    states = [network.stem(x)]
    for i in range(network.depth):
        states.append(network.run(states[-1], i, i + 1))
    return states


def _check_every_start(network: Network, x: Tensor, states: list[Tensor]) -> None:
    expected = network.model(x)
    assert torch.equal(network.forward_from(0, x), expected), "pixels: not model(x)"
    for k, state in enumerate(states[1:], 1):
        before = state.clone()
        assert torch.equal(network.forward_from(k, state), expected), f"boundary {k}: not model(x)"
        assert torch.equal(state, before), f"boundary {k}: the state was changed in place"


def _check_pools(network: Network, states: list[Tensor]) -> None:
    facts = network.facts
    for block in range(1, facts.depth + 1):
        for pool in facts.pools:
            vector = network.pooled(states[block], block, pool)
            shape = (states[block].shape[0], facts.width(block, pool))
            assert tuple(vector.shape) == shape, f"pooled({block}, {pool}): {vector.shape}"
    own = network.pooled(states[-1], facts.depth, facts.own_pool)
    assert torch.equal(own, network.own_features(states[-1])), "own readout: not timm's features"
    assert torch.equal(network.classifier(own), network.classify(states[-1])), "own head"


def _check_drop_blocks(network: Network, x: Tensor, states: list[Tensor]) -> None:
    stop = max(1, network.facts.depth // 2)
    short = network.fork()
    short.drop_blocks(stop)
    pool = network.facts.pools[-1]
    expected = network.pooled(states[stop], stop, pool)
    got = short.pooled(short.advance(0, x, stop), stop, pool)
    assert torch.equal(got, expected), "dropped blocks change the readout before them"
    held = sum(p.numel() for i in range(stop, network.depth) for _, p in parameters_at(short, i))
    assert held == 0, "dropped blocks still hold parameters"


def _check_facts(network: Network) -> None:
    facts = network.facts
    assert Facts.from_dict(json.loads(json.dumps(facts.to_dict()))) == facts, "JSON round trip"
    counts = (facts.stem_params, *facts.block_params, facts.tail_params)
    for place, count in enumerate(counts, -1):
        seen = sum(p.numel() for _, p in parameters_at(network, place))
        assert seen == count, f"place {place}: {seen} parameters, facts say {count}"
    assert facts.modules, "no module that an adapter may target"
    for module, sizes in facts.modules.items():
        for i, size in enumerate(sizes):
            if size:
                found = network.model.get_submodule(network.module_path(i, module))
                assert network.place(network.module_path(i, module)) == i
                assert isinstance(found, (nn.Linear, nn.Conv2d)), f"{module}: {type(found)}"
                assert getattr(found, "groups", 1) == 1, f"{module} is a grouped convolution"


def _check_fork(network: Network) -> None:
    before = dict(network.model.named_modules())
    fork = network.fork()
    for name, tensor in network.model.state_dict(keep_vars=True).items():
        other = fork.model.state_dict(keep_vars=True)[name]
        assert other is not tensor, f"{name}: the fork holds the resident object"
        assert other.data_ptr() == tensor.data_ptr(), f"{name}: not shared"
    assert not set(map(id, before.values())) & set(map(id, fork.model.modules())), "shared modules"
    name, _ = next(parameters_at(fork, 0))
    values = network.model.get_parameter(name).clone()
    with torch.no_grad():
        fork.own([name])[name].add_(1.0)
    fork.drop_blocks(1)
    fork.model.train()
    assert torch.equal(network.model.get_parameter(name), values), "own() reached the resident"
    assert dict(network.model.named_modules()) == before, "the resident's modules changed"
    assert not any(m.training for m in before.values()), "train() reached the resident"
    assert not any(p.requires_grad for p in network.model.parameters()), "the resident trains"


def _check_frozen(fork: Network, x: Tensor) -> None:
    """Training mode changes nothing: no moving statistics, no dropout."""
    with torch.no_grad():
        expected = fork.model(x)
        state = {k: v.clone() for k, v in fork.model.state_dict().items()}
        fork.model.train()
        assert torch.equal(fork.model(x), expected), "training mode changes the output"
    for name, value in fork.model.state_dict().items():
        assert torch.equal(value, state[name]), f"{name} moved in training mode"
    for module in fork.model.modules():
        assert not (isinstance(module, _BatchNorm) and module.training), "BatchNorm in training"
    assert not any(p.requires_grad for p in fork.model.parameters()), "a frozen parameter trains"
    fork.model.eval()
