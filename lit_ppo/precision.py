"""16-bit gradients: what to do when scaled ones overflow."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

MOST_IN_A_ROW = 20
POSSIBLE = ("32-true", "bf16-mixed", "16-mixed")
_SHORT = ("None", "32", "bf16", "16")  # Lightning's short names of them


def check_precision(asked: Any, key: str = "trainer.precision") -> None:
    """Check that the network can be trained in a precision of Lightning's.

    Args:
        asked: as the trainer takes it; None is its default.
        key: its name, for the message.

    Raises:
        ValueError: it cannot; says what is possible.
    """
    if str(asked) not in POSSIBLE + _SHORT:
        raise ValueError(
            f"{key} is one of {', '.join(POSSIBLE)}, got {asked}: network inputs and weights are float32 (prices and "
            "money are float64 whatever it says)"
        )


def scales_loss(precision: Any) -> bool:
    """Whether Lightning's `precision` plugin scales the loss, so that 16-bit gradients do not vanish (`16-mixed`)."""
    return getattr(precision, "scaler", None) is not None


class SkippedSteps:
    """Tells an overflow of `16-mixed`'s loss scale from a training that broke.

    The scaler starts too high on purpose: it skips the optimizer step and halves the scale until gradients fit into 16
    bits. So gradients that are not finite are its business, and not an error, unless it never ends.
    """

    def __init__(self) -> None:
        self.in_a_row = 0

    def skip(self, precision: Any, policy: nn.Module) -> bool:
        """Whether the scaler of Lightning's `precision` plugin will skip this step; on unscaled gradients.

        Raises:
            FloatingPointError: too many steps in a row.
        """
        if not scales_loss(precision):
            return False
        gradients = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
        finite = torch.stack([gradient.isfinite().all() for gradient in gradients]).all()
        self.in_a_row = 0 if finite else self.in_a_row + 1
        if self.in_a_row > MOST_IN_A_ROW:
            raise FloatingPointError(
                f"{self.in_a_row} optimizer steps in a row had gradients that are not finite, whatever the loss scale. "
                "Look for extreme features or rewards, or use bf16-mixed."
            )
        return not finite
