"""Sequences on several threads, each with its own: rollouts of bars, loss and gradient of a minibatch.

torch spreads single operations over its threads, and its threads wait for each other at the end of each. A recurrent
network is a chain of small ones: at H = 256 a second core made an update 1.1 times as fast. Sequences meet nowhere
before the sum of their gradients, so here each thread takes its share of them from the first step to the last gradient.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_ppo.ppo.losses import PPOLoss
from lit_ppo.ppo.rollout import Rollout

Part = TypeVar("Part")
Result = TypeVar("Result")
LEAST_SEQUENCES = 4  # of one thread: fewer make its matrix products thin


def count_pieces(num_sequences: int) -> int:
    """Pieces of equal size that a minibatch of so many sequences is best cut into for torch's threads."""
    most = min(torch.get_num_threads(), num_sequences // LEAST_SEQUENCES)
    return max((pieces for pieces in range(1, most + 1) if num_sequences % pieces == 0), default=1)


def pieces_on(device: torch.device, num_sequences: int) -> int:
    """`count_pieces` on a CPU, 1 elsewhere; and under autocast, which is of one thread."""
    plain = device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return count_pieces(num_sequences) if plain else 1


@contextmanager
def share_threads(pieces: int) -> Iterator[None]:
    """Leave to each of so many pieces its share of torch's threads, and as many to whatever runs between two losses.

    One operation on all threads between two losses would cost more than itself: threads that are done spin for
    milliseconds, on the cores that the next loss wants.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // pieces))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_threads(function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """The results for each part, in their order: the first one on this thread, each other on one of its own.

    Within `share_threads`, whose share of torch's threads each of them gets.
    """
    threads = torch.get_num_threads()

    def run(part: Part) -> Result:
        torch.set_num_threads(threads)  # of the thread that runs this
        return function(part)

    futures = [_pool().submit(run, part) for part in parts[1:]]
    try:
        results = [function(parts[0])]
    finally:
        outcomes = [future.exception() for future in futures]  # waits, so that no thread outlives the call
    for error in outcomes:
        if error is not None:
            raise error
    return results + [future.result() for future in futures]


def loss_in_threads(
    loss_of: Callable[[Rollout], PPOLoss], minibatch: Rollout, pieces: int, parameters: Sequence[Tensor]
) -> PPOLoss:
    """Sum of the losses of equal pieces of a minibatch, each evaluated and differentiated on a thread of its own.

    The gradient is computed here already, and handed over when `total.backward()` asks for it. The sums run in the
    pieces' order: same bits for the same number of pieces. Within `share_threads`.

    Args:
        loss_of: the loss of some sequences, such that pieces add up to the minibatch's.
        minibatch: S sequences.
        pieces: a divisor of S.
        parameters: what is differentiated by.
    """
    total, *terms = _LossInThreads.apply(loss_of, minibatch, pieces, *parameters)
    return PPOLoss(total, *terms)


class _LossInThreads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss_of, minibatch, pieces, *parameters):
        """Return the five terms of `PPOLoss`."""
        parts = [minibatch.select(part) for part in torch.arange(minibatch.advantages.shape[1]).chunk(pieces)]

        def evaluate(part: Rollout) -> tuple[PPOLoss, tuple[Tensor | None, ...]]:
            with torch.enable_grad():
                loss = loss_of(part)
                return loss, torch.autograd.grad(loss.total, parameters, allow_unused=True)

        results = in_threads(evaluate, parts)
        ctx.gradients = [_sum(gradients) for gradients in zip(*(found for _, found in results), strict=True)]
        terms = [
            torch.stack([term.detach() for term in of_pieces]).sum()
            for of_pieces in zip(*(loss for loss, _ in results), strict=True)
        ]
        ctx.mark_non_differentiable(*terms[1:])
        return tuple(terms)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total, *_):
        return (None, None, None, *(None if found is None else found * grad_total for found in ctx.gradients))


def _sum(gradients: Sequence[Tensor | None]) -> Tensor | None:
    """Add what the pieces found for one parameter, in order; None where none of them used it."""
    found = [gradient for gradient in gradients if gradient is not None]
    return None if not found else sum(found[1:], start=found[0])


_pools: dict[int, ThreadPoolExecutor] = {}  # by process: threads do not survive a fork


def _pool() -> ThreadPoolExecutor:
    pool = _pools.get(os.getpid())
    if pool is None:
        pool = _pools[os.getpid()] = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="loss")
    return pool
