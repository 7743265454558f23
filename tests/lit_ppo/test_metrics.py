"""The torchmetrics give the figures of `performance`, however the path is cut."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torchmetrics import Metric, MetricCollection

from lit_ppo.module import LitPPO
from lit_ppo.scoring import metrics
from lit_ppo.scoring.performance import trading_metrics
from tests.integration.shells import SMALL, small_data, small_trainer

BARS_PER_YEAR = 23_000.0
KEYS = dict(metrics.figures(BARS_PER_YEAR, "").items())


def path(seed=0, bars=600):
    generator = np.random.default_rng(seed)
    positions = np.repeat(generator.choice([-1.0, 0.0, 1.0], size=bars // 6), 6)
    return {
        "net_returns": generator.normal(0.0002, 0.01, size=bars) * (positions != 0),
        "positions": positions,
    }


def collection():
    return MetricCollection({name: metric.clone() for name, metric in KEYS.items()}, compute_groups=False)


def chunks_of(arrays, borders):
    pieces = {name: np.split(values, borders) for name, values in arrays.items()}
    for i in range(len(borders) + 1):
        yield {name: torch.from_numpy(values[i].copy()) for name, values in pieces.items()}


@pytest.mark.parametrize("borders", [[], [300], [1, 2, 3, 599], [0, 100, 100, 600]])
def test_chunked_figures_equal_those_of_the_whole_path_bit_for_bit(borders):
    arrays = path()
    figures = collection()
    for chunk in chunks_of(arrays, borders):
        figures.update(**chunk)
    expected = trading_metrics(**arrays, bars_per_year=BARS_PER_YEAR)
    assert {name: value.item() for name, value in figures.compute().items()} == {name: expected[name] for name in KEYS}


@pytest.mark.parametrize("name", KEYS)
def test_merging_puts_the_later_part_last(name):
    arrays = path(1)
    figures = [collection()[name] for _ in range(3)]
    for figure, chunk in zip(figures, chunks_of(arrays, [250, 400]), strict=True):
        MetricCollection([figure]).update(**chunk)
    first, second, third = figures
    first.merge_state(second)
    first.merge_state(third.metric_state)
    assert first.compute().item() == trading_metrics(**arrays, bars_per_year=BARS_PER_YEAR)[name]


def test_merging_after_a_compute_counts_the_new_bars():
    early, late = metrics.MaxDrawdown(), metrics.MaxDrawdown()
    early.update(torch.tensor([0.1, -0.1]))
    late.update(torch.tensor([-0.5]))
    assert early.compute().item() == pytest.approx(10.0)
    early.merge_state(late)
    assert early.compute().item() == pytest.approx(55.0)
    with pytest.raises(ValueError, match="its own kind"):
        early.merge_state(metrics.Exposure())


def test_one_ranks_path_follows_the_others_when_gathered():
    arrays = path(2)
    halves = list(chunks_of(arrays, [300]))
    figure = metrics.MaxDrawdown()
    figure.update(halves[0]["net_returns"])
    figure.net_returns = torch.cat([halves[0]["net_returns"], halves[1]["net_returns"]])  # as left by a gather
    assert figure.compute().item() == trading_metrics(**arrays, bars_per_year=1.0)["max_drawdown_pct"]


def test_the_state_stays_float64_in_a_half_precision_module():
    figure = metrics.Sharpe(BARS_PER_YEAR)
    returns = torch.from_numpy(path()["net_returns"])
    torch.nn.ModuleList([figure]).half()
    figure.update(returns)
    torch.nn.ModuleList([figure]).to(torch.bfloat16)
    assert figure.compute().dtype == torch.float64
    assert figure.compute().item() == trading_metrics(**path(), bars_per_year=BARS_PER_YEAR)["sharpe_annual"]


def test_forward_returns_the_chunk_and_keeps_the_path():
    figure = metrics.Exposure()
    assert figure(torch.tensor([1.0, 0.0])).item() == 0.5
    assert figure(torch.tensor([1.0, 1.0])).item() == 1.0
    assert figure.compute().item() == 0.75
    figure.reset()
    figure.update(torch.tensor([0.0]))
    assert figure.compute().item() == 0.0


def test_an_empty_path_has_the_figures_of_an_empty_path():
    figures = collection()
    figures.update(net_returns=torch.zeros(0), positions=torch.zeros(0))
    expected = trading_metrics([], [], BARS_PER_YEAR)
    for name, value in figures.compute().items():
        assert value.item() == pytest.approx(expected[name], nan_ok=True)


def test_metrics_survive_pickling():
    figure = metrics.WinRate()
    figure.update(torch.tensor([0.1, -0.2]), torch.tensor([1.0, -1.0]))
    assert pickle.loads(pickle.dumps(figure)).compute().item() == 0.5


def test_wrong_chunks_are_refused_with_their_shapes():
    with pytest.raises(ValueError, match=r"'positions': \(2,\)"):
        metrics.WinRate().update(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        metrics.MaxDrawdown().update(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="bars_per_year > 0"):
        metrics.Sharpe(0.0)


def test_every_metric_is_a_torchmetric():
    assert len(KEYS) == 8
    assert all(isinstance(metric, Metric) for metric in KEYS.values())


def test_the_segments_of_a_test_are_one_path_and_not_the_mean_of_their_figures(tmp_path):
    data = small_data()
    module = LitPPO(**{**SMALL, "seed": 3, "hold_bias": -2.0})
    module.build(data.fold_data(0).train)
    segments = [data.fold_data(0).validation, data.test_segment(0)]
    loader = torch.utils.data.DataLoader(segments, batch_size=None)  # type: ignore[arg-type]
    (found,) = small_trainer(tmp_path).test(module, dataloaders=loader, verbose=False)
    ledgers = [module.evaluate(segment).ledger for segment in segments]
    names = ("net_return", "position")
    net, position = (np.concatenate([getattr(ledger, name) for ledger in ledgers]) for name in names)
    whole = trading_metrics(net, position, segments[0].bars_per_year)
    for name in KEYS:
        assert found[f"test/{name}"] == pytest.approx(whole[name], rel=1e-12)
    scores = [module.evaluate(segment).score for segment in segments]
    assert found["test/score"] == pytest.approx(np.mean(scores), rel=1e-6)
    assert not any("figures" in name for name in module.state_dict())
