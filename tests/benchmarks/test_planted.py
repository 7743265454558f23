"""The battery of benchmarks/planted.py: its cells, and one of them from file to share."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import yaml

from benchmarks.planted import Cell, Ground, Window, cells_of, line
from datamodules.synthetic import SyntheticMarket

CONFIGS = Path(__file__).parents[2] / "configs"


def asked(**changes) -> argparse.Namespace:
    settings = {"kinds": ["momentum", "null"], "sharpes": [3.0, 6.0], "windows": [2000], "seeds": 2, "quick": False}
    return argparse.Namespace(**{**settings, "config": "scratch", **changes})


def test_the_null_has_one_size_and_another_recipe_cells_of_its_own():
    cells = cells_of(asked(), [Path("a.csv")])
    assert [(cell.kind, cell.sharpe, cell.size, cell.seed) for cell in cells] == [
        *(("momentum", sharpe, None, 0) for sharpe in (3.0, 6.0)),
        *(("momentum", sharpe, None, 1) for sharpe in (3.0, 6.0)),
        *(("null", None, 0.0, seed) for seed in (0, 1)),
    ]
    names = {cell.name for config in ("scratch", "mine") for cell in cells_of(asked(config=config), [Path("a.csv")])}
    assert len(names) == 2 * len(cells)
    assert [cell.kind for cell in cells_of(asked(quick=True), [Path("a.csv")])] == ["momentum", "null"]


def test_a_cell_goes_over_every_fold_of_the_file(tmp_path):
    market = SyntheticMarket(kind="random_walk", num_bars=1100, seed=3, scale=1e-3, cost=0.05)
    path = tmp_path / "bars.csv"
    market.write(path)
    recipe = yaml.safe_load((CONFIGS / "scratch.yaml").read_text(encoding="utf-8"))
    recipe["model"] = {"num_envs": 4, "num_steps": 16, "burn_in": 4, "hidden_size": 4, "total_timesteps": 256}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    window = Window(400, 100, 200, 256)
    assert window.flags("scratch") == [*window.flags("small"), "--model.total_timesteps=256"]
    ground = Ground.of(path, window, str(tmp_path / "small.yaml"), 0.2)
    cell = Cell("bars.csv", "momentum", 400, 0, size=0.2)
    found = ground.run(cell)
    assert found["folds"] == len(ground.subject.data.folds) == found["test_bars"] / 200
    assert found["m"] == 0.2
    assert "bars.csv | momentum | m 0.2 | 400 bars | seed 0" in line(cell, found)
    assert "found    -   " in line(cell, {**found, "share": None})
    assert replace(cell, sharpe=3.0).name.startswith("bars.csv | momentum | sharpe 3")
