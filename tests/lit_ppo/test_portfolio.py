"""Several instruments as one account."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

import lit_ppo
from lit_ppo.argument_types import as_flag
from lit_ppo.cli import main
from lit_ppo.report.portfolio import beyond_trend
from lit_ppo.scoring.fills import FillTable
from lit_ppo.scoring.portfolio import DAY, Leg, calendar, combine, past_volatility, rank_among_random, risk_weights
from lit_ppo.scoring.significance import Alpha, alpha_over

COST = 1e-3


def leg(name, first, count, move, position=1.0, cost=COST, seed=None) -> Leg:
    """`count` daily bars from day `first` on, whose returns are +move, -move, +move, ... or drawn with `seed`."""
    returns = move * np.where(np.arange(count) % 2, -1.0, 1.0)
    if seed is not None:
        returns = move * np.random.default_rng(seed).standard_normal(count)
    zeros, price = np.zeros(count), 100 * np.cumprod(np.append(1.0, 1 + returns[:-1]))
    time = (first + np.arange(count)) * DAY
    fills = FillTable(time, zeros.astype(np.int64), price, returns, np.full(count, cost), zeros, zeros)
    return Leg(name, fills, np.broadcast_to(np.float64(position), count).copy(), 365.25)


def test_a_portfolio_is_the_hand_computed_one_while_an_instrument_joins_late_and_another_ends():
    # Volatility of a: 1 % a day, one unit of risk. b moves 4 %, so a unit of it is a quarter of the notional.
    portfolio = combine([leg("a", 0, 60, 0.01), leg("b", 25, 80, 0.04)])
    # 20 returns, known 2 days later: a joins at the decision of day 21 (returns of days 0 to 19), b of day 25 + 21.
    assert portfolio.day.tolist() == list(range(21, 105))
    weights = np.zeros((84, 2))
    weights[:25, 0] = 1.0  # a alone
    weights[25:44, 0] = 0.5  # both: days 46 to 64; a ends on day 59, and counts for 5 days more
    weights[25:44, 1] = 0.125
    weights[44:, 1] = 0.25  # b alone
    np.testing.assert_allclose(portfolio.weights, weights, atol=1e-12)
    returns = [0.01 * (1 if day % 2 == 0 else -1) for day in range(21, 60)]
    ours = [sum(w * r for w, r in zip(weights[row, :1], [returns[row]], strict=True)) for row in range(39)]
    ours[0] -= COST * 1.0  # a is entered
    ours[25] -= COST * 0.5  # and halved when b joins
    np.testing.assert_allclose(portfolio.returns["agent"][:39, 0], ours, atol=1e-12)
    other = [0.04 * (1 if (day - 25) % 2 == 0 else -1) for day in range(46, 105)]
    theirs = [w * r for w, r in zip(weights[25:, 1], other, strict=True)]
    theirs[0] -= COST * 0.125
    theirs[19] -= COST * 0.125
    np.testing.assert_allclose(portfolio.returns["agent"][25:, 1], theirs, atol=1e-12)
    assert not portfolio.returns["agent"][39:, 0].any()
    np.testing.assert_allclose(portfolio.net(), portfolio.returns["agent"].sum(axis=1))
    np.testing.assert_allclose(portfolio.returns["long"], portfolio.returns["agent"])  # it was long throughout
    np.testing.assert_allclose(portfolio.exposure[:39, 0], weights[:39, 0])
    assert portfolio.share_of_risk().sum() == pytest.approx(1)
    assert portfolio.days_per_year == pytest.approx(365.25)


def test_a_weight_is_known_before_the_day_that_it_is_for():
    calm = leg("a", 0, 80, 0.01, seed=1)
    fills = calm.fills
    for last in (40, 41, 60):
        changed = fills.price_return.copy()
        changed[last:] *= 7
        args = (fills.turnover_cost, fills.carry_long, fills.carry_short)
        wild = Leg("a", FillTable(fills.time, fills.fold, fills.fill_price, changed, *args), calm.position, 365.25)
        then, now = (risk_weights([one], calendar([one])) for one in (calm, wild))
        # The return of decision `last` ends at the fill of the next decision: known from decision last + 2 on.
        np.testing.assert_array_equal(then[: last + 2], now[: last + 2])
        assert then[last + 2] > now[last + 2]


def test_a_month_without_moves_is_no_licence_for_a_huge_position_and_a_dead_price_has_no_weight():
    returns = np.concatenate([np.tile([0.01, -0.01], 100), np.zeros(500)])
    days, sigma = past_volatility(np.arange(700), returns)
    assert len(days) == 700
    assert sigma[201] == pytest.approx(0.01)
    assert sigma[600] > 0.002  # the volatility of 35 days is 3e-5 by then
    assert np.isnan(past_volatility(np.arange(50), np.zeros(50))[1]).all()
    with pytest.raises(ValueError, match=r"at least 20 test days, known 2 days later; the longest of a, b has 15"):
        combine([leg("a", 0, 15, 0.01), leg("b", 0, 5, 0.01)])


def test_bars_of_an_hour_meet_those_of_a_day_on_one_calendar():
    daily, count = leg("a", 0, 40, 0.01), 40 * 24
    hourly = leg("b", 0, count, 0.01, seed=2)
    fills = hourly.fills
    time = np.arange(count) * DAY // 24
    args = (fills.price_return, fills.turnover_cost, fills.carry_long, fills.carry_short)
    hours = Leg("b", FillTable(time, fills.fold, fills.fill_price, *args), hourly.position, 24 * 365.25)
    portfolio = combine([daily, hours])
    assert portfolio.day.tolist() == list(range(21, 40))
    earned = portfolio.weights[5, 1] * fills.price_return[26 * 24 : 27 * 24].sum()
    turnover = abs(portfolio.weights[5, 1] - portfolio.weights[4, 1])
    assert portfolio.returns["agent"][5, 1] == pytest.approx(earned - COST * turnover, abs=1e-12)


def test_the_rank_of_a_trader_with_foresight_is_the_best_and_of_one_who_never_changes_a_tie():
    legs = [leg(name, 0, 200, 0.01, seed=seed) for seed, name in enumerate("ab")]
    sighted = [Leg(one.name, one.fills, np.sign(one.fills.price_return), 365.25) for one in legs]
    assert rank_among_random(sighted, combine(sighted), seed=0, draws=100).percentile == 100
    for one in legs:
        one.position[-1] = 0.0  # as the agent's last decision of a fold is
    assert rank_among_random(legs, combine(legs), seed=0, draws=100).percentile == 50


def test_alpha_is_that_of_statsmodels_with_newey_west_errors():
    generator = np.random.default_rng(0)
    factors = 0.01 * generator.standard_normal((400, 2))
    noise = np.convolve(0.01 * generator.standard_normal(404), np.ones(5) / 5, "valid")
    returns = 0.001 + factors @ [0.5, -0.3] + noise
    found = alpha_over(returns, *factors.T)
    assert found.lags == 5
    fit = sm.OLS(returns, sm.add_constant(factors)).fit(
        cov_type="HAC", cov_kwds={"maxlags": 5, "use_correction": False}
    )
    np.testing.assert_allclose([found.alpha, *found.betas], fit.params, rtol=1e-9)
    assert found.t == pytest.approx(fit.tvalues[0], rel=1e-9)
    assert np.isnan(alpha_over(factors[:, 0], factors[:, 0]).t)  # nothing is left to explain


# The command, the page and Python

MODEL = {"num_envs": 4, "num_steps": 16, "burn_in": 4, "hidden_size": 4, "total_timesteps": 64, "hold_bias": 0.0}
MODEL |= {"screen_features": False, "num_networks": 1}
SIZES = {"train_size": 300, "validation_size": 100, "test_size": 100, "step_size": 100, "warmup_bars": 20}
SIZES |= {"cache": False, "fold_limit": 1}
TRAINER = {"accelerator": "cpu", "logger": False, "callbacks": None}


def bars(first: int, count: int, seed: int) -> pd.DataFrame:
    """Daily bars of a random walk from day `first` of 2020 on."""
    close = 100 * np.exp(np.cumsum(0.01 * np.random.default_rng(seed).standard_normal(count)))
    opened = np.append(100.0, close[:-1])
    high, low = np.maximum(opened, close) * 1.001, np.minimum(opened, close) * 0.999
    time = pd.date_range("2020-01-01", periods=count, freq="D", tz="UTC") + pd.Timedelta(days=first)
    return pd.DataFrame({"time": time, "open": opened, "high": high, "low": low, "close": close, "volume": 1.0})


@pytest.fixture(scope="module")
def portfolio(tmp_path_factory) -> lit_ppo.Portfolio:
    """Two instruments, one of which begins late, and one that is too short for a fold."""
    several = {"gold": bars(0, 760, 0), "oil": bars(60, 640, 1), "new": bars(600, 90, 2)}
    root = tmp_path_factory.mktemp("several")
    settings = {"model": MODEL, "trainer": TRAINER, "costs": {"spread": "2bp"}, "seed": 7, **SIZES}
    return lit_ppo.walk_forward(several, config="scratch", results=root, **settings)


def test_a_dict_of_frames_is_a_run_each_and_their_portfolio_and_what_fails_is_left_out_and_named(portfolio):
    assert list(portfolio.runs) == ["gold", "oil"]
    assert list(portfolio.record["failed"]) == ["new"]
    assert "needs train_size 300" in portfolio.record["failed"]["new"]
    for name, run in portfolio.runs.items():
        assert run.path == portfolio.path / name / "7"
        assert (run.path / "report.html").is_file()
    returns = portfolio.returns
    assert list(returns) == ["gold", "oil"]
    assert returns.index[0] - portfolio.runs["gold"].decisions["time"][0] >= pd.Timedelta(days=21)
    agent = portfolio.record["traders"]["agent"]
    assert agent["return_pct"] == pytest.approx(100 * ((1 + returns.sum(axis=1)).prod() - 1))
    contributions = portfolio.instruments["contribution_pct"]
    assert contributions.sum() == pytest.approx(agent["mean_pct"])
    assert portfolio.record["traders"]["no_costs"]["mean_pct"] >= agent["mean_pct"]
    assert lit_ppo.load_portfolio(portfolio.path).verdict == portfolio.verdict
    with pytest.raises(FileNotFoundError, match="no portfolio"):
        lit_ppo.load_portfolio(portfolio.path / "gold")


def test_the_page_says_whether_trend_is_beaten_and_report_writes_it_again(portfolio, capsys):
    page = portfolio.path / "portfolio.html"
    text = page.read_text(encoding="utf-8")
    for part in (portfolio.verdict.text, "Newey-West t", "long + trend", "gold", "oil", "Left out", "new ("):
        assert part in text
    assert "being long and following the trend" in portfolio.verdict.text
    page.unlink()
    assert main(["report", str(portfolio.path)]) == 0
    assert page.read_text(encoding="utf-8") == text
    assert str(page) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("alpha", "t", "says"),
    [(0.001, 2.5, "It is more than"), (0.001, 1.5, "not shown to beat"), (-0.001, -2.5, "It is worse than")],
)
def test_only_a_significant_alpha_beats_trend(portfolio, alpha, t, says):
    legs = [leg("a", 0, 60, 0.01), leg("b", 0, 60, 0.01, seed=1)]
    assert says in beyond_trend(Alpha(alpha, t, (0.0, 0.0), 4), combine(legs))


def test_a_glob_a_list_names_and_symbols_of_a_file_are_instruments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("gold", "oil"):
        bars(0, 40, 0).to_csv(f"{name}.csv", index=False)
    both = pd.concat([bars(0, 40, 0).assign(symbol="EUR/USD"), bars(5, 30, 1).assign(symbol="XAU")])
    both.to_csv("both.csv", index=False)

    def names(path, **reader):
        module = lit_ppo.WalkForwardDataModule(path, **reader)
        return [tuple(one) for one in module.instruments()] if module.several else None

    files = [("gold", "gold.csv", None), ("oil", "oil.csv", None)]
    assert names("[go]*.csv") == names(["oil.csv", "gold.csv"]) == files
    assert names({"second": "gold.csv", "first": "oil.csv"}) == [
        ("first", "oil.csv", None),
        ("second", "gold.csv", None),
    ]
    symbols = [("EUR-USD", "both.csv", "EUR/USD"), ("XAU", "both.csv", "XAU")]
    assert names("both.csv", symbol="*") == names("both.csv", symbol=["XAU", "EUR/USD"]) == symbols
    assert names("gold.csv") is names("both.csv", symbol="XAU") is None
    Path("other").mkdir()
    Path("other/gold.txt").write_text("")
    with pytest.raises(ValueError, match=r"2 instruments would have the folder gold: gold\.csv and other/gold\.txt"):
        names(["gold.csv", "other/gold.txt"])
    with pytest.raises(FileNotFoundError, match="no file matches"):
        names("no*.csv")
    with pytest.raises(FileNotFoundError, match=r"names none\.csv"):
        names(["none.csv"])
    with pytest.raises(ValueError, match=r"2 instruments are asked for .* and this command reads one"):
        lit_ppo.WalkForwardDataModule("[go]*.csv").setup()
    with pytest.raises(ValueError, match="no column holds symbols"):
        names("gold.csv", symbol="*")


def test_the_command_line_takes_files_by_name_refuses_runs_that_are_there_and_resumes(portfolio, capsys):
    files = {path.stat().st_size: path for path in (portfolio.path / "bars").glob("*.csv")}
    _, oil, gold = (files[size] for size in sorted(files))
    groups = {"model": MODEL, "data": SIZES, "trainer": TRAINER}
    settings = [(f"{group}.{name}", value) for group, keys in groups.items() for name, value in keys.items()]
    flags = ["--config=scratch", *(f"--{key}={as_flag(key, value)}" for key, value in settings)]
    flags += ["--seed=7", "--data.costs.spread=2bp", f"--results={portfolio.path}"]
    flags += [f"--data.path={json.dumps({'gold': str(gold), 'oil': str(oil)})}"]
    assert main(["walk-forward", *flags]) == 2
    assert "holds runs of seed 7 of 2 of these instruments already" in capsys.readouterr().err
    assert main(["walk-forward", *flags, "--seeds=2"]) == 2
    assert "--seeds 2 pools one market" in capsys.readouterr().err
    before = {name: (run.path / "out_of_sample.csv").read_bytes() for name, run in portfolio.runs.items()}
    assert main(["walk-forward", *flags, "--resume"]) == 0
    told = capsys.readouterr().out
    assert "2 instruments at equal risk" in told
    assert portfolio.verdict.text in told
    assert before == {name: (run.path / "out_of_sample.csv").read_bytes() for name, run in portfolio.runs.items()}
    assert json.loads((portfolio.path / "portfolio.json").read_text())["failed"] == {}
