"""An agent learns markets whose optimum is known, through the whole product: a part of benchmarks/oracles.py."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from datamodules.oracle_bars import fresh_bars, train_fold
from datamodules.synthetic import SyntheticMarket
from lit_ppo import cli
from lit_ppo.commands.oracle import MarketMaker, OracleTask, rule_controls, summarise
from lit_ppo.lab.oracle_score import FreshBars, belief_probe
from lit_ppo.nets.policy import MarketPolicy
from lit_ppo.oracles import optima
from lit_ppo.seeding import make_generator

MAKE = MarketMaker(SyntheticMarket, train_fold, fresh_bars)
SMALL = {
    "screen_features": False,
    "num_envs": 4,
    "num_steps": 16,
    "burn_in": 4,
    "hidden_size": 4,
    "num_minibatches": 2,
    "update_epochs": 1,
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the tests run side by side
    yield
    torch.set_num_threads(before)


def fresh(kind: str, bars: int = 4000, **more) -> FreshBars:
    task = OracleTask({"kind": kind, **more}, train_bars=1000, test_bars=bars)
    return task.fresh(MAKE, train_fold(SyntheticMarket(kind=kind, seed=3, **more), 1000))


class BestTrader(MarketPolicy):
    """Decides what the dynamic programme decides, from a market's own bars."""

    def __init__(self, bars: FreshBars, observed: np.ndarray) -> None:
        super().__init__(1, hidden_size=1)
        states = bars.optimum.states(observed)[bars.market.first_bar :][: len(bars.market)]
        self.states, self.borders = torch.from_numpy(states), torch.from_numpy(bars.optimum.borders)

    def encode(self, features, state, episode_starts=None):
        encoded, state = super().encode(features, state, episode_starts)
        chunk, self.states = self.states[: len(features)], self.states[len(features) :]
        hidden = chunk.view(-1, 1, 1).expand(-1, features.shape[1], 1)
        return encoded.map(lambda _: hidden), state

    def logits(self, hidden, held=None, account=None):
        target = (hidden.unsqueeze(-1) > self.borders).sum(-1)  # [..., P]
        return torch.nn.functional.one_hot(target, 3).float()


@pytest.mark.parametrize("kind", ["regime", "predictor"])
def test_the_best_trader_scores_exactly_one_and_does_not_look_ahead(kind):
    bars = fresh(kind)
    draw = SyntheticMarket(kind=kind, num_bars=4000, seed=_test_seed()).draw()
    observed = draw.returns if draw.signal is None else draw.signal
    score = bars.score(BestTrader(bars, observed))
    # The bars start with the agent flat; log(1 + n) and rounded prices leave some 1e-4 units.
    assert score.fraction == pytest.approx(1.0, abs=5e-3)
    assert not score.looks_ahead


def _test_seed() -> int:
    from lit_ppo.seeding import derive_seed

    return derive_seed(0, 0, "oracle test") >> 32


def test_a_trader_that_sees_the_next_return_raises_the_alarm():
    bars = fresh("regime")
    draw = SyntheticMarket(kind="regime", num_bars=4000, seed=_test_seed()).draw()
    leak = BestTrader(bars, np.append(draw.returns[1:], 0.0))
    assert bars.score(leak).looks_ahead


def test_fresh_bars_pair_the_agent_with_the_best_trader_on_the_same_decisions():
    bars = fresh("regime")
    assert len(bars.best) == bars.market.num_decisions == len(bars.hidden_state)
    head = bars.head(500)
    assert head.market.num_decisions == 500
    np.testing.assert_array_equal(head.best, bars.best[:500])


def test_the_probe_finds_a_belief_that_is_in_the_hidden_state_and_none_in_noise():
    bars = fresh("regime")
    policy = MarketPolicy(1, hidden_size=2, generator=make_generator(0))
    draw = SyntheticMarket(kind="regime", num_bars=4000, seed=_test_seed()).draw()
    q, mu = bars.optimum.parameters["q"], bars.optimum.parameters["mu"]
    odds = optima.belief_log_odds(draw.returns, q, mu)[bars.market.first_bar :][: len(bars.market)]

    class Knows(MarketPolicy):
        def encode(self, features, state, episode_starts=None):
            encoded, state = super().encode(features, state, episode_starts)
            hidden = torch.from_numpy(odds).view(-1, 1, 1).float() * torch.tensor([2.0, -1.0])
            return encoded.map(lambda _: hidden), state

    assert belief_probe(Knows(1, hidden_size=2), bars) > 0.999
    assert belief_probe(policy, bars) < 0.9  # an untrained memory is no filter
    with pytest.raises(ValueError, match="no hidden state"):
        belief_probe(policy, fresh("predictor"))


def test_nothing_that_is_measured_while_training_changes_the_training():
    task = OracleTask({"kind": "regime"}, train_bars=600, test_bars=3000)
    recipe = {**SMALL, "total_timesteps": 256}
    with_curve, without = (task.train(MAKE, 1, recipe, curve_decisions=size) for size in (1000, 0))
    assert with_curve.curve
    assert not without.curve
    assert with_curve.score == without.score


def test_the_curve_tells_when_each_level_was_reached_first():
    task = OracleTask({"kind": "regime"}, train_bars=600, test_bars=3000)
    result = task.train(MAKE, 1, {**SMALL, "total_timesteps": 512})
    timesteps = [point.timesteps for point in result.curve]
    assert timesteps == sorted(set(timesteps))
    assert timesteps[-1] == 512
    low = result.reached(min(point.fraction for point in result.curve))
    assert low is not None
    assert result.reached(2.0) is None
    assert json.loads(json.dumps(result.to_dict()))["reached"]["0.95"] is None


def test_the_rules_that_need_no_learning_agree_with_the_table():
    parameters = SyntheticMarket(kind="regime").parameters
    assert rule_controls(parameters, "regime")["best_memoryless_rule"] == pytest.approx(0.0591, abs=1e-4)
    parameters = SyntheticMarket(kind="predictor").parameters
    assert rule_controls(parameters, "predictor")["sign_rule"] == pytest.approx(0.09692, abs=1e-4)
    assert rule_controls(SyntheticMarket(kind="random_walk").parameters, "random_walk") == {"flat": 0.0}


def test_a_summary_of_one_seed_has_no_interval():
    result = {"fraction": 0.5, "reward": 0.1, "seconds": 1.0, "looks_ahead": False}
    assert summarise([result])["interval"] is None
    low, high = summarise([result, {**result, "fraction": 0.7}])["interval"]
    assert low == 0.5
    assert high == 0.7


def test_the_command_writes_what_it_measured(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {num_envs: 4, num_steps: 16, burn_in: 4, hidden_size: 4, update_epochs: 1}\n")
    flags = "--model.hidden_size 3 --train_bars 600 --test_bars 2000 --timesteps 128 --seeds 2 --nuisances 2"
    more = ["--noise", "student_t", "--dof", "4", "--config", str(recipe), "--results", str(tmp_path / "out")]
    code = cli.main(["oracle", *flags.split(), *more])
    assert code == 0
    assert "of the optimum" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "oracle.json").read_text())
    assert record["recipe"]["hidden_size"] == 3
    assert record["recipe"]["num_steps"] == 16
    assert record["market"]["parameters"]["dof"] == 4
    assert [seed["seed"] for seed in record["seeds"]] == [0, 1]
    assert len(record["controls"]["memoryless_trainer"]) == 2
    assert list((tmp_path / "out" / "seed_0").glob("events*"))


def test_a_wrong_market_is_a_usage_error(capsys):
    assert cli.main(["oracle", "--market", "regime", "--rho", "0.5"]) == 2
    assert "remove rho" in capsys.readouterr().err
    assert cli.main(["oracle", "--marked", "regime"]) == 2


# The oracle smoke: one seed, a short budget. The whole suite is benchmarks/oracles.py.


def test_the_default_recipe_learns_the_predictor():
    task = OracleTask({"kind": "predictor"}, train_bars=20_000, test_bars=50_000)
    result = task.train(MAKE, 0, {"total_timesteps": 60_000}, curve_decisions=0)
    assert result.score.fraction > 0.9  # the sign rule has 0.69
    assert not result.score.looks_ahead


def test_the_default_recipe_learns_the_hidden_regime():
    task = OracleTask({"kind": "regime"}, train_bars=20_000, test_bars=50_000)
    result = task.train(MAKE, 0, {"total_timesteps": 60_000}, curve_decisions=0)
    assert result.score.fraction > 0.7  # the best rule without memory has 0.53
    assert result.probe_r2 > 0.9
    assert not result.score.looks_ahead


def test_the_default_recipe_leaves_a_random_walk_alone():
    task = OracleTask({"kind": "random_walk"}, train_bars=20_000, test_bars=50_000)
    result = task.train(MAKE, 0, {"total_timesteps": 60_000}, curve_decisions=0)
    assert math.isnan(result.score.fraction)
    assert result.score.trades_per_bar < 0.01
    assert abs(result.score.reward) <= 2 * result.score.standard_error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "parameters", "least"),
    [
        ("predictor", {}, 0.95),
        ("regime", {}, 0.95),
        ("regime", {"noise": "student_t", "dof": 4.0}, 0.9),
        ("regime", {"nuisances": 30}, 0.85),
    ],
)
def test_the_default_recipe_comes_close_to_the_optimum(kind, parameters, least):
    task = OracleTask({"kind": kind, **parameters}, train_bars=20_000, test_bars=300_000)
    result = task.train(MAKE, 0, {"total_timesteps": 500_000}, curve_decisions=0)
    assert result.score.fraction > least
    assert not result.score.looks_ahead


@pytest.mark.slow
def test_the_same_trainer_without_memory_stays_below_sixty_percent():
    task = OracleTask({"kind": "regime"}, train_bars=20_000, test_bars=300_000)
    result = task.train(MAKE, 0, {"total_timesteps": 500_000, "encoder": "memoryless"}, curve_decisions=0)
    assert result.score.fraction <= 0.6
