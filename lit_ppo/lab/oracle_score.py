"""What an agent is worth on fresh bars of a market with a known optimum, and what its memory knows of the hidden state.

Rewards are in units per bar (`lit_ppo.oracles.optima`): log(1 + net return) divided by the market's scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lit_ppo.market.tensors import MarketTensors
from lit_ppo.nets.policy import MarketPolicy, ObservationPolicy
from lit_ppo.oracles import optima
from lit_ppo.oracles.dynamic_programming import FloatArray
from lit_ppo.oracles.optima import Optimum
from lit_ppo.scoring.evaluation import CHUNK, evaluate

PER_BAR = ("features", "price_return", "turnover_cost", "carry_long", "carry_short", "fill_price", "time")


@dataclass(frozen=True)
class OracleScore:
    """One agent on fresh bars.

    Attributes:
        reward: mean reward per bar, units.
        standard_error: of `reward`.
        fraction: share of the optimum, (J + V - J_optimum on the same bars) / V: the bars' own luck meets both, so
            the error is several times smaller than that of `raw_fraction`. nan where nothing can be earned.
        fraction_error: its standard error.
        raw_fraction: J / V.
        looks_ahead: better than the optimum by more than three standard errors: a leak, not a success.
        trades_per_bar: share of bars with a change of position.
    """

    reward: float
    standard_error: float
    fraction: float
    fraction_error: float
    raw_fraction: float
    looks_ahead: bool
    trades_per_bar: float


@dataclass(frozen=True)
class FreshBars:
    """Bars that no agent was trained on, with what the best trader does on them.

    Attributes:
        market: N bars, scaled as the agent's train bars were.
        optimum: of the market.
        scale: log return of one unit.
        best: [D] rewards of the best trader on the decision bars, units.
        hidden_state: [D] log odds of a rising regime at each decision bar, given all bars up to it; None where the
            market has no hidden state.
    """

    market: MarketTensors
    optimum: Optimum
    scale: float
    best: FloatArray
    hidden_state: FloatArray | None

    @classmethod
    def of(
        cls, market: MarketTensors, optimum: Optimum, scale: float, returns: FloatArray, signal: FloatArray | None
    ) -> FreshBars:
        """Run the best trader.

        Args:
            returns, signal: [file's bars] of the market, units; row 0 of `market` is row `market.first_bar` of them.
        """
        first = market.first_bar + market.warmup
        rows = slice(first, market.first_bar + len(market))
        best = optima.rewards(
            optimum.decide(returns if signal is None else signal), returns, optimum.parameters["cost"]
        )[rows]
        hidden_state = None
        if optimum.kind == "regime":
            q, mu, dof = (optimum.parameters[name] for name in ("q", "mu", "dof"))
            hidden_state = optima.belief_log_odds(returns, q, mu, dof)[rows]
        return cls(market, optimum, scale, best, hidden_state)

    def head(self, decisions: int) -> FreshBars:
        """The first so many decision bars."""
        stop = self.market.warmup + decisions
        market = replace(self.market, **{name: getattr(self.market, name)[:stop] for name in PER_BAR})
        hidden_state = None if self.hidden_state is None else self.hidden_state[:decisions]
        return replace(self, market=market, best=self.best[:decisions], hidden_state=hidden_state)

    def score(
        self, policy: MarketPolicy | ObservationPolicy, account_features: Sequence[str] = ("position",)
    ) -> OracleScore:
        """Let the policy trade these bars greedily."""
        evaluation = evaluate(policy, self.market, account_features)
        net = np.log1p(evaluation.ledger.net_return) / self.scale
        reward, error, value = float(net.mean()), optima.standard_error(net), self.optimum.value
        lead = net - self.best
        lead_mean, lead_error = float(lead.mean()), optima.standard_error(lead)
        worth = value > 0
        return OracleScore(
            reward=reward,
            standard_error=error,
            fraction=1 + lead_mean / value if worth else float("nan"),
            fraction_error=lead_error / value if worth else float("nan"),
            raw_fraction=optima.fraction_of_optimum(reward, value) if worth else float("nan"),
            looks_ahead=optima.looks_ahead(value + lead_mean, lead_error, value),
            trades_per_bar=float((np.diff(evaluation.positions, prepend=0.0) != 0).mean()),
        )


@torch.no_grad()
def belief_probe(policy: MarketPolicy, fresh: FreshBars) -> float:
    """R^2, on bars it was not fitted on, of the best linear map from the LSTM's hidden state to the belief's log odds.

    Near 1 the network has become the Bayes filter of the market. The map is fitted on the first half of the bars.

    Raises:
        ValueError: the market has no hidden state.
    """
    if fresh.hidden_state is None:
        raise ValueError(f"a {fresh.optimum.kind} market has no hidden state to probe for")
    state, pieces = policy.initial_state(policy.num_networks), []
    for features in fresh.market.features.split(CHUNK):
        encoded, state = policy.encode(features.unsqueeze(1).expand(-1, policy.num_networks, -1), state)
        pieces.append(encoded.policy.flatten(1))
    hidden = torch.cat(pieces)[fresh.market.warmup :].double().cpu().numpy()  # [D, K H]
    inputs = np.column_stack([hidden, np.ones(len(hidden))])
    half = len(inputs) // 2
    weights, *_ = np.linalg.lstsq(inputs[:half], fresh.hidden_state[:half], rcond=None)
    truth = fresh.hidden_state[half:]
    return float(1 - np.square(truth - inputs[half:] @ weights).mean() / truth.var())
