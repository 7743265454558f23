"""Every real bar file ends with out_of_sample.csv, or with a refusal that says what to do."""

from __future__ import annotations

import pandas as pd
import pytest

from lit_ppo.cli import main

SHORT = ["--model.total_timesteps", "4096", "--data.fold_limit", "2", "--data.cache", "false"]
SLOW = pytest.mark.slow
READ = [
    "XAUUSD_15min_mt5epoch_2024q1.csv",
    pytest.param("XAUUSDm_15min_exness_2022-07_2025-04.csv.gz", marks=SLOW),
    pytest.param("XAUUSDm_15min_exness_2022-11_2025-05.csv.gz", marks=SLOW),
    pytest.param("XAUUSDm_15min_exness_2023-01_2025-08_mt5cols.csv.gz", marks=SLOW),
]
WITHOUT_SPREAD = [
    ("GOOGL_1d_2009-05_2018-08.csv", "0.02", ["--data.train_size", "1000", "--data.warmup_bars", "50"]),
    ("EURUSD_60min_dukascopy_ask_2017.csv", "0.0001", []),
    pytest.param("BTCUSD_60min_desc_2018-05_2022-03.csv.gz", "5", [], marks=SLOW),
    pytest.param("XAUUSD_15min_mt4_2016-09_2019-08.csv.gz", "0.2", [], marks=SLOW),
    pytest.param("XAUUSDm_15min_semicolon_tz_2024-01_2025-08.csv.gz", "0.2", [], marks=SLOW),
]


def run(path, *arguments: str) -> int:
    command = ["walk-forward", "--config", "scratch.yaml", "--data.path", str(path), *SHORT, *arguments]
    return main(command)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, request):
    config = request.config.rootpath / "configs/scratch.yaml"
    (tmp_path / "scratch.yaml").write_text(config.read_text())
    monkeypatch.chdir(tmp_path)


def rows() -> pd.DataFrame:
    return pd.read_csv("results/42/out_of_sample.csv")


@pytest.mark.parametrize("name", READ)
def test_a_file_with_spreads_is_traded_as_it_stands(bar_file, name):
    assert run(bar_file(name)) == 0
    assert rows()["fold"].tolist() == [0] * 500 + [1] * 500


@pytest.mark.parametrize(("name", "spread", "sizes"), WITHOUT_SPREAD)
def test_a_file_without_spreads_asks_for_one_and_is_traded_with_it(bar_file, capsys, name, spread, sizes):
    path = bar_file(name)
    assert run(path, *sizes) == 2
    assert "--data.costs.spread" in capsys.readouterr().err
    assert run(path, *sizes, "--data.costs.spread", spread) == 0
    assert len(rows()) % 500 == 0


def test_the_file_of_mixed_resolution_is_refused_with_the_row_where_the_spacing_changes(bar_file, capsys):
    assert run(bar_file("XAUUSDm_60min_exness_2018-06_2025-04_mixedres.csv.gz")) == 2
    assert "the spacing of the bars changes at row 947" in capsys.readouterr().err
