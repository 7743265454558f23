"""The README's tables say what benchmarks/results says, and "unmeasured" where it says nothing."""

from __future__ import annotations

import itertools

import pytest

from benchmarks import oracles, tables, vs_peers
from benchmarks.common import RESULTS, read, write
from benchmarks.markdown import UNMEASURED, replaced

SEED = {
    "fraction": 0.99,
    "fraction_error": 0.004,
    "reward": 0.1,
    "standard_error": 0.001,
    "looks_ahead": False,
    "trades_per_bar": 0.02,
    "probe_r2": 0.95,
    "seconds": 10.0,
    "timesteps": 1000,
    "reached": {"0.8": {"timesteps": 100}, "0.9": None, "0.95": None},
    "curve": [[100, 1.0, 0.8]],
}


def bodies(text: str) -> list[list[str]]:
    """The rows of each Markdown table, without its titles."""
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("| ---")]
    return [list(itertools.takewhile(lambda line: line.startswith("|"), lines[start + 1 :])) for start in starts]


def test_without_results_every_row_is_unmeasured():
    empty = {name: {} for name in tables.NAMES}
    part = tables.readme_part(empty)
    assert UNMEASURED in tables.quality_table({})
    assert {row[2] for row in tables.speed_rows(empty)} == {UNMEASURED}
    for text, count in ((part, 1), (tables.summary(empty), 7)):
        found = bodies(text)
        assert len(found) == count
        assert all(found)
        assert all(UNMEASURED in line for body in found for line in body)
    assert "no machine yet" in part


def test_the_readme_has_one_table_of_eight_rows_that_hides_no_miss():
    results = tables.read_results(RESULTS)
    (body,) = bodies(tables.readme_part(results))
    assert len(body) == 8
    assert UNMEASURED not in "".join(body)
    fastest = next(row for row in tables.speed_rows(results) if row[0].startswith("one LSTM of 256"))
    assert any(fastest[0] in line and line.endswith(f"| {fastest[-1]} |") for line in body)


@pytest.mark.parametrize("fraction", [0.99, 0.9])
def test_a_row_passes_when_every_condition_holds(tmp_path, fraction):
    record = {"rows": {}}
    for seed in range(3):
        result = {**SEED, "seed": seed, "fraction": fraction}
        oracles.store(tmp_path / "o.json", record, oracles.Job("o3", seed, {}, 1, 1), result)
    group = read(tmp_path / "o.json")["rows"]["o3"]
    assert group["passed"] == (fraction == 0.99)
    (row,) = tables.quality_rows(record)
    assert f"{100 * fraction:.1f} %" in row[2]
    assert row[-1] == ("yes" if fraction == 0.99 else "no")
    assert "[100, never, never]" in tables.page({name: {} for name in tables.NAMES} | {"oracles": record})


def test_one_collapsed_seed_fails_the_row():
    row = oracles.ROWS["o3_window"]
    seeds = [{**SEED, "fraction": value} for value in (0.97, 0.97, 0.97, 0.97, 0.97, 0.97, 0.97, 0.5)]
    group = {"seeds": seeds, "summary": oracles.summarise(seeds)}
    assert group["summary"]["interquartile_mean"] > row.bar
    assert oracles.passed(row, group) is False


def test_a_random_walk_passes_by_staying_flat():
    quiet = {**SEED, "fraction": None, "reward": -1e-5, "trades_per_bar": 1e-4, "probe_r2": None}
    for seed, expected in ((quiet, True), ({**quiet, "trades_per_bar": 0.5}, False)):
        group = {"seeds": [seed], "summary": oracles.summarise([seed])}
        assert oracles.passed(oracles.ROWS["o4"], group) is expected


@pytest.mark.slow
def test_unseen_markets_are_drawn_once_and_for_all_and_worth_learning():
    jobs = oracles.unseen_draws()
    assert [job.market for job in jobs] == [job.market for job in oracles.unseen_draws()]
    assert len({str(job.market) for job in jobs}) == oracles.UNSEEN_DRAWS
    assert {job.market.get("noise", "normal") for job in jobs} == {"normal", "student_t"}


def test_a_ratio_compares_two_trainers_of_one_round():
    rounds = [{"lit-ppo": {"sps": 20.0}, "a": {"sps": 10.0}}, {"lit-ppo": {"sps": 5.0}, "a": {"sps": 1.0}}]
    rounds.append({"lit-ppo": {"sps": 7.0}, "a": {"error": "out of memory"}})
    assert vs_peers.ratios(rounds) == {"a": {"median": 3.5, "min": 2.0, "max": 5.0}}


def test_only_what_is_between_the_markers_is_replaced(tmp_path):
    text = "before\n<!-- measured:begin (note) -->\nold\n<!-- measured:end -->\nafter\n"
    assert replaced(text, "new") == text.replace("old", "new")


def test_a_result_is_written_whole(tmp_path):
    write(tmp_path / "deep" / "r.json", {"a": 1})
    assert read(tmp_path / "deep" / "r.json") == {"a": 1}
    assert read(tmp_path / "none.json") == {}


def test_the_readme_and_its_page_are_what_the_results_say():
    results = tables.read_results(RESULTS)
    readme = (tables.ROOT / "README.md").read_text(encoding="utf-8")
    assert replaced(readme, tables.readme_part(results)) == readme, "run python -m benchmarks.tables"
    page = (tables.ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert page == tables.page(results), "run python -m benchmarks.tables"
