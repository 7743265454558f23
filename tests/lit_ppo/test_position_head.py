"""The fused head of all positions against the same formula in torch."""

from __future__ import annotations

import pytest
import torch

from lit_ppo.nets.networks import PositionHead
from lit_ppo.seeding import make_generator


def gradients(head: PositionHead, hidden: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    outputs = head(hidden)
    return [outputs, *torch.autograd.grad((outputs * weights).sum(), [hidden, *head.parameters()])]


@pytest.mark.parametrize(
    ("width", "positions", "shape"), [(64, 3, (7, 19)), (16, 3, (1, 1)), (32, 5, (130,)), (16, 2, (3, 2, 5))]
)
def test_outputs_and_gradients_are_those_of_the_plain_formula_in_float64(width, positions, shape):
    g = make_generator(5)
    head = PositionHead(24, positions, 0, (width,), "tanh", positions, 0.5, g)
    with torch.no_grad():
        head.output[0].bias.copy_(torch.randn(positions, generator=g))
    hidden = torch.randn(*shape, 24, generator=g, requires_grad=True)
    weights = torch.randn(*shape, positions, positions, generator=g)
    assert head._fused(head.market(hidden))
    found = gradients(head, hidden, weights)
    exact = head.double()
    wanted = gradients(exact, hidden.detach().double().requires_grad_(), weights.double())
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=2e-6 * float(theirs.detach().abs().max()))


def test_heads_that_the_kernel_does_not_know_run_in_torch():
    g = make_generator(5)
    for layers, activation in (((10,), "tanh"), ((16, 16), "tanh"), ((16,), "relu")):
        head = PositionHead(8, 3, 0, layers, activation, 3, 0.5, g)
        assert not head._fused(head.market(torch.randn(4, 8, generator=g)))
        assert head(torch.randn(4, 8, generator=g)).shape == (4, 3, 3)


def test_nan_stays_in_its_row():
    g = make_generator(5)
    head = PositionHead(8, 3, 0, (16,), "tanh", 3, 0.5, g)
    hidden = torch.randn(6, 8, generator=g)
    hidden[2] = torch.nan
    outputs = head(hidden)
    assert outputs[2].isnan().all()
    assert outputs[[0, 1, 3, 4, 5]].isfinite().all()
