"""What an account has earned up to its last known fill, from bars and past decisions: the live side of `unrealised`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lit_ppo.market.costs import FillArrays, net_return
from lit_ppo.market.rewards import RUIN_RETURN


class KnownEquity:
    """Log equity at the fills of the decisions 0, 1, ..., 0 at the first: as `lit_ppo.envs.account.Account` sums it.

    Args:
        fills: of all bars; known for decision i once fill i + 1 is.
        positions: [P] grid.
        flat_index: where 0 stands in it: what was held before decision 0.
        first_row: bar of decision 0.
    """

    def __init__(self, fills: FillArrays, positions: Sequence[float], flat_index: int, first_row: int) -> None:
        self._positions, self._flat_index, self._first_row = positions, flat_index, first_row
        self._series = (fills.price_return, fills.turnover_cost, fills.carry_long, fills.carry_short)
        self._log_equity = [0.0]

    def at_fill(self, number: int, actions: Sequence[int]) -> float:
        """Log equity at the fill of decision `number`, given the positions `actions` of the decisions before it.

        Raises:
            ValueError: a price or cost on the way there is missing.
        """
        while len(self._log_equity) <= number:
            i = len(self._log_equity) - 1
            held = self._positions[actions[i - 1] if i else self._flat_index]
            values = (float(series[self._first_row + i]) for series in self._series)
            earned = float(net_return(held, self._positions[actions[i]], *values))
            if math.isnan(earned):
                raise ValueError(
                    f"Bar {self._first_row + i} or one of the two after it lacks a price or a spread, so what the "
                    "account earned since is unknown, and the policy decides by it. Give bars without holes"
                )
            self._log_equity.append(self._log_equity[i] + math.log1p(max(earned, RUIN_RETURN)))
        return self._log_equity[number]
