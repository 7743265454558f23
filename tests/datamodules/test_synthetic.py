import numpy as np
import pytest

from datamodules.bars.read import read_bars
from datamodules.synthetic import POINT, SyntheticMarket
from lit_ppo.market.costs import Costs, fill_arrays

KINDS = ("regime", "predictor", "random_walk")


def price_returns(market: SyntheticMarket) -> np.ndarray:
    """Log returns of the file's bars in units [N]; the first from the first open."""
    frame = market.frame()
    close = frame["close"].to_numpy()
    return np.diff(np.log(np.append(frame["open"].iloc[0], close))) / market.scale


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_file_and_another_seed_another(kind, tmp_path):
    def text(seed: int, name: str) -> bytes:
        return SyntheticMarket(kind=kind, num_bars=200, seed=seed, nuisances=3).write(tmp_path / name).read_bytes()

    assert text(1, "a.csv") == text(1, "b.csv")
    assert text(1, "a.csv") != text(2, "b.csv")
    assert text(1, "a.csv.gz") == text(1, "b.csv.gz")


@pytest.mark.parametrize("kind", KINDS)
def test_the_written_file_reads_back_as_the_bars_in_memory(kind, tmp_path):
    market = SyntheticMarket(kind=kind, num_bars=3000, seed=2)
    made, read = market.bars(), read_bars(market.write(tmp_path / "market.csv"))
    for name in ("time", "open", "high", "low", "close", "volume", "spread"):
        assert made.frame[name].equals(read.frame[name]), name
    assert made.point == read.point
    assert (made.bar_seconds, made.bars_per_year) == (read.bar_seconds, read.bars_per_year)
    assert not read.card.warnings
    assert not made.card.warnings
    assert made.card.text().startswith("file")


def test_the_extra_columns_read_back_too(tmp_path):
    market = SyntheticMarket(kind="predictor", num_bars=500, nuisances=4, nuisance_kind="mixed")
    made, read = market.bars(), read_bars(market.write(tmp_path / "market.csv"))
    assert made.frame.equals(read.frame)


def test_different_markets_have_different_hashes():
    markets = [
        SyntheticMarket(num_bars=50, seed=seed, nuisances=n, cost=c)
        for seed, n, c in ((0, 0, 0.1), (1, 0, 0.1), (0, 1, 0.1), (0, 0, 0.2))
    ]
    assert len({market.bars().sha256 for market in markets}) == 4
    assert markets[0].bars().sha256 == SyntheticMarket(num_bars=50, cost=0.1).bars().sha256


def test_more_bars_than_there_is_time_for_are_refused():
    with pytest.raises(ValueError, match="ask for fewer or make synthetic"):
        SyntheticMarket(num_bars=100_000, bar_seconds=86_400).frame()


@pytest.mark.parametrize("kind", KINDS)
def test_a_longer_market_starts_with_the_same_bars(kind):
    short = SyntheticMarket(kind=kind, num_bars=300, nuisances=4, nuisance_kind="mixed").frame()
    long = SyntheticMarket(kind=kind, num_bars=500, nuisances=4, nuisance_kind="mixed").frame()
    assert short.equals(long.iloc[:300])


@pytest.mark.parametrize("kind", KINDS)
def test_prices_are_the_cumulated_returns_and_the_open_is_the_close_before(kind):
    market = SyntheticMarket(kind=kind, num_bars=5000, seed=3)
    frame = market.frame()
    np.testing.assert_allclose(price_returns(market), market.draw().returns, atol=3e-5)
    np.testing.assert_array_equal(frame["open"][1:], frame["close"][:-1])
    np.testing.assert_array_equal(frame["high"], frame[["open", "close"]].max(axis=1))
    np.testing.assert_array_equal(frame["low"], frame[["open", "close"]].min(axis=1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_next_open_fill_earns_the_next_return_and_pays_the_cost_in_units(kind):
    market = SyntheticMarket(kind=kind, num_bars=5000, seed=4)
    fills = fill_arrays(market.frame(), Costs(), "next_open", POINT)
    returns = market.draw().returns
    np.testing.assert_allclose(np.log1p(fills.price_return[:-2]) / market.scale, returns[1:-1], atol=3e-5)
    np.testing.assert_allclose(fills.turnover_cost[:-1] / market.scale, market.parameters["cost"], rtol=5e-5)


def test_the_signal_of_a_predictor_is_what_the_next_fill_interval_earns():
    market = SyntheticMarket(kind="predictor", num_bars=2000)
    fills = fill_arrays(market.frame(), Costs(), "next_open", POINT)
    signal = market.frame()["signal"].to_numpy()
    np.testing.assert_allclose(fills.price_return[:-2] / market.scale, signal[:-2], atol=1e-4)


def test_a_predictor_is_a_stationary_autoregression():
    signal = SyntheticMarket(kind="predictor", num_bars=400_000, rho=0.95, beta=0.05).draw().signal
    assert signal.std() == pytest.approx(0.05 / np.sqrt(1 - 0.95**2), rel=0.02)
    innovations = signal[1:] - 0.95 * signal[:-1]
    assert innovations.std() == pytest.approx(0.05, rel=0.01)
    assert abs(np.corrcoef(innovations, signal[:-1])[0, 1]) < 0.01


def test_a_regime_flips_with_its_probability_and_moves_the_mean():
    draw = SyntheticMarket(kind="regime", num_bars=400_000, q=0.02, mu=0.5).draw()
    assert set(np.unique(draw.regime)) == {-1.0, 1.0}
    assert (np.diff(draw.regime) != 0).mean() == pytest.approx(0.02, rel=0.05)
    noise = draw.returns - 0.5 * draw.regime
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(1, rel=0.01)


def test_student_noise_has_variance_one_and_heavy_tails():
    draw = SyntheticMarket(kind="random_walk", num_bars=400_000, noise="student_t", dof=5).draw()
    assert draw.returns.std() == pytest.approx(1, rel=0.02)
    assert (np.abs(draw.returns) > 5).mean() > 1e-4  # normal noise: 6e-7


@pytest.mark.parametrize("kind", ["iid", "random_walk", "lagged", "noisy", "mixed"])
def test_nuisance_columns_are_added_and_leave_the_market_as_it_was(kind):
    plain = SyntheticMarket(num_bars=400).frame()
    frame = SyntheticMarket(num_bars=400, nuisances=6, nuisance_kind=kind).frame()
    assert list(frame.columns[-6:]) == [f"nuisance_{k:02d}" for k in range(6)]
    assert frame[list(plain.columns)].equals(plain)
    assert np.isfinite(frame.iloc[:, -6:].to_numpy()).all()
    assert len(np.unique(frame.iloc[100, -6:].to_numpy().astype(float))) == 6


def test_iid_nuisances_know_nothing_of_the_returns():
    frame = SyntheticMarket(num_bars=50_000, nuisances=5).frame()
    returns = np.diff(np.log(frame["close"]))
    for k in range(5):
        assert abs(np.corrcoef(frame[f"nuisance_{k:02d}"][:-1], returns)[0, 1]) < 4 / np.sqrt(50_000)


def test_lagged_and_noisy_nuisances_copy_the_past():
    market = SyntheticMarket(num_bars=20_000, nuisances=4, nuisance_kind="lagged")
    returns = np.round(market.draw().returns, 6)
    for k in range(4):
        np.testing.assert_array_equal(market.frame()[f"nuisance_{k:02d}"][k + 1 :], returns[: -k - 1])
    noisy = SyntheticMarket(kind="predictor", num_bars=20_000, nuisances=1, nuisance_kind="noisy").frame()
    assert np.corrcoef(noisy["nuisance_00"], noisy["signal"])[0, 1] == pytest.approx(np.sqrt(0.5), abs=0.03)


def test_every_parameter_of_a_kind_changes_its_file():
    changes = {
        "regime": {"q": 0.3, "mu": 0.5, "cost": 0.2},
        "predictor": {"rho": 0.5, "beta": 0.3, "cost": 0.2},
        "random_walk": {"cost": 0.2},
    }
    for kind, values in changes.items():
        default = SyntheticMarket(kind=kind, num_bars=100).frame()
        for name, value in values.items():
            assert not SyntheticMarket(kind=kind, num_bars=100, **{name: value}).frame().equals(default), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "trend"}, "must be one of regime, predictor, random_walk, got 'trend'"),
        ({"kind": "random_walk", "mu": 0.2}, "remove mu"),
        ({"kind": "predictor", "noise": "normal"}, "remove noise"),
        ({"q": 0.0}, "synthetic.q"),
        ({"kind": "predictor", "rho": 1.0}, "synthetic.rho"),
        ({"noise": "student_t"}, "student_t needs it"),
        ({"noise": "student_t", "dof": 2.0}, "no variance"),
        ({"dof": 4.0}, "belongs to noise student_t"),
        ({"nuisance_kind": "copies"}, "nuisance_kind"),
        ({"num_bars": 2}, "num_bars"),
    ],
)
def test_a_market_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SyntheticMarket(**settings)
