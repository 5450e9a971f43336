"""Where a method's own module computes."""

import pytest
import torch
from torch import nn

from autopeft.errors import UserError
from autopeft.methods.hooks import behind, beside, channels_last, plus


def test_a_sum_keeps_type_and_layout_of_what_was_there():
    tokens, maps = torch.zeros(2, 5, 4).bfloat16(), torch.zeros(2, 4, 3, 5).bfloat16()
    assert plus(tokens, torch.ones(2, 5, 4)).dtype == torch.bfloat16
    change = torch.randn(2, 3, 5, 4).bfloat16()
    assert torch.equal(channels_last(plus(maps, change)), change)


def test_a_block_of_another_form_is_refused(networks):
    fork = networks["test_vit"].fork()
    del fork.model.blocks[2].ls1
    with pytest.raises(UserError, match="no plain pre-norm blocks"):
        behind(fork, 2, "mlp", nn.Identity())
    with pytest.raises(UserError, match="no plain pre-norm blocks"):
        beside(fork, 2, "attn", nn.Identity())
    behind(fork, 2, None, nn.Identity())  # the whole block needs no parts


def test_hooks_stay_in_their_fork(networks):
    for network in networks.values():
        fork = network.fork()
        behind(fork, 1, None, nn.Identity())
        assert len(fork.model.get_submodule(fork.block_names(1))._forward_hooks) == 1
        assert not network.model.get_submodule(network.block_names(1))._forward_hooks
        assert not network.fork().model.get_submodule(network.block_names(1))._forward_hooks
