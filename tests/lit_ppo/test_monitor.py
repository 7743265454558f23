"""The monitor: what it computes, its plain lines, its live display and its TensorBoard scalars."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_ppo.folds.machine_load import MachineLoad
from lit_ppo.folds.monitor import OLD_SCRIPT, RECORDED, Baseline, Monitor, progress_figures, read_baseline
from lit_ppo.folds.optimisation_summary import pace_in_words, work_in_words
from lit_ppo.store.results import NOT_TRAINED, FoldRecord

CACHE = {"hits": 2}


def record(index: int, timesteps: int = 20_000, seconds: float = 2.0, stopped: bool = True) -> FoldRecord:
    early = {"stopped": stopped, "timesteps_saved": 5_000, "counts": {"early_stops": int(stopped)}}
    return FoldRecord(
        index,
        status="done",
        timesteps=timesteps,
        seconds={"fit": seconds},
        details={
            "planned_timesteps": 25_000,
            "visited_timesteps": timesteps,
            "optimisations": {"convergence_early_stopping": early},
        },
    )


def test_doing_less_and_doing_it_faster_are_two_figures_whose_product_is_the_speed_up():
    baseline = Baseline("test", seconds=100.0, timesteps=50_000)
    figures = progress_figures([record(0), record(1)], 10, baseline, CACHE, mean_seconds=3.0)
    assert figures["speedup"] == pytest.approx(200 / 4)
    assert figures["did_less"] == pytest.approx(100_000 / 40_000)
    assert figures["did_it_faster"] == pytest.approx(20)
    assert figures["time_left_s"] == 24
    assert (figures["early_stops"], figures["cache_hits"], figures["timesteps_saved"]) == (2, 2, 10_000)


@pytest.mark.parametrize(
    ("ratio", "work", "pace"),
    [
        (2.5, "2.5x less work", "2.5x faster"),
        (1.02, "as much work", "as fast"),
        (0.977, "as much work", "as fast"),
        (0.4, "2.5x more work", "2.5x slower"),
        (355.0, "355x less work", "355x faster"),
        (math.nan, "work not comparable", "pace not comparable"),
        (None, "work not comparable", "pace not comparable"),
    ],
)
def test_a_ratio_below_one_is_never_called_less_or_faster(ratio, work, pace):
    assert (work_in_words(ratio), pace_in_words(ratio)) == (work, pace)


def test_piped_a_fold_is_a_plain_line_of_100_columns_without_what_is_zero():
    text = io.StringIO()
    head = f"fold  98  100,000 bars  validation -0.0294  test {-12.34:+.2f} %"
    early = record(0)
    nothing = FoldRecord(0, "done", timesteps=100, seconds={"fit": 2.0})
    with Monitor(300, console=Console(file=text, width=40)) as monitor:
        assert not monitor.live
        monitor.fold_done(head, 2.0, [nothing], {"hits": 0})
        monitor.fold_done(head, 2.0, [early], CACHE)
    first, *others = text.getvalue().splitlines()
    assert first == f"  1/300  {head}  2.0 s/fold, 0:09:58 left"
    assert "".join(others).endswith("timesteps saved, 1 early stop, 2 cache hits")
    assert all(len(line) <= 100 for line in (first, *others))
    assert "\x1b" not in text.getvalue()


def test_with_a_baseline_the_speed_up_and_its_two_factors_are_in_a_folds_line():
    text = io.StringIO()
    with Monitor(3, RECORDED, console=Console(file=text, width=40)) as monitor:
        for index in range(2):
            monitor.fold_done(f"[fold] {index}", 2.0, [record(i) for i in range(index + 1)], CACHE)
    lines = text.getvalue().splitlines()
    assert RECORDED.name in lines[0]
    assert lines[1].startswith("    1/3  [fold] 0")
    assert all(len(line) <= 100 for line in lines)
    for word in ("x less work, done ", "x faster)", "early stops", "cache hits", "0:00:02 left"):
        assert word in " ".join(lines[3:])


def test_the_first_line_counts_the_folds_that_were_not_trained_and_calls_that_no_saving():
    text = io.StringIO()
    blind = [record(index, timesteps=0) for index in range(2)]
    for one in blind:
        one.stop_reason, one.details["optimisations"] = NOT_TRAINED, {}
    with Monitor(9, console=Console(file=text, width=100)) as monitor:
        monitor.fold_done("fold 0", 2.0, blind[:1], {})
        monitor.fold_done("fold 1", 2.0, blind, {})
    first, second = text.getvalue().splitlines()
    assert "1 not trained so far" in first
    assert "2 not trained so far" in second
    assert "saved" not in text.getvalue()


def test_a_fold_that_was_not_trained_is_no_speed_up():
    text, blind = io.StringIO(), record(0, timesteps=0)
    blind.stop_reason = NOT_TRAINED
    with Monitor(3, RECORDED, console=Console(file=text, force_terminal=True, width=160)) as monitor:
        monitor.fold_done("fold 0", 2.0, [blind], {})
        assert "peed-up" not in text.getvalue()
        monitor.fold_done("fold 1", 2.0, [blind, record(1)], {})
    alone = progress_figures([record(1)], 3, RECORDED, {}, 2.0)
    assert [monitor.figures[name] for name in ("speedup", "did_less")] == [alone["speedup"], alone["did_less"]]
    assert RECORDED.name in text.getvalue()


def test_folds_in_a_row_that_were_not_trained_are_shown_now_and_then_and_a_trained_one_always():
    text = io.StringIO()
    folds = [record(index, timesteps=0) for index in range(109)]
    for one in folds:
        one.stop_reason, one.details["optimisations"] = NOT_TRAINED, {}
    folds[30].stop_reason = "budget"
    with Monitor(109, console=Console(file=text, width=100)) as monitor:
        for index in range(109):
            monitor.fold_done(f"fold {index}", 2.0, folds[: index + 1], {})
    shown = [int(line.split()[0].split("/")[0]) for line in text.getvalue().splitlines() if "fold" in line.split()]
    assert shown == [1, 2, 5, 10, 20, 31, 32, 33, 36, 41, 51, 81, 109]
    assert "108 not trained so far" in text.getvalue()


def test_without_a_baseline_nobody_speaks_of_a_speed_up():
    text = io.StringIO()
    with Monitor(3, read_baseline(None), console=Console(file=text, force_terminal=True, width=160)) as monitor:
        monitor.fold_done("fold 0", 2.0, [record(0)], CACHE)
    assert "1/3  fold 0" in text.getvalue()
    assert "peed-up" not in text.getvalue()
    assert not {"speedup", "did_less", "did_it_faster"} & set(monitor.figures)


def test_the_figures_are_tensorboard_scalars(tmp_path):
    with Monitor(3, tensorboard=tmp_path, console=Console(file=io.StringIO())) as monitor:
        monitor.fold_done("", 2.0, [record(0)], CACHE)
        shown = monitor.figures
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {f"monitor/{name}" for name in shown}
    assert events.Scalars("monitor/timesteps")[0].value == 20_000


def test_on_a_terminal_the_display_is_live_and_shows_the_fold_in_training():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    with Monitor(3, console=console) as monitor:
        assert monitor.live
        monitor.show("fold 0 of 3: 1,000 / 2,000 bars")
        monitor.fold_done("fold 0", 2.0, [record(0)], CACHE)
    assert not monitor.live
    assert "1/3" in text.getvalue()


def test_a_measured_baseline_is_read_and_a_wrong_file_refused(tmp_path):
    assert read_baseline(OLD_SCRIPT) is RECORDED
    path = tmp_path / "b.json"
    path.write_text(json.dumps({"baseline": {"name": "measured", "seconds": 30, "timesteps": 100}}))
    assert read_baseline(path) == Baseline("measured", 30.0, 100)
    with pytest.raises(FileNotFoundError, match="lit-ppo benchmark"):
        read_baseline(tmp_path / "absent.json")
    for text in ("{}", "no json", json.dumps({"baseline": {"name": "", "seconds": 0, "timesteps": 1}})):
        path.write_text(text)
        with pytest.raises(ValueError, match="baseline"):
            read_baseline(path)


def test_the_load_is_read():
    load = MachineLoad()
    sum(range(2_000_000))
    figures = load.read()
    assert figures["memory_mb"] > 10
    assert figures["peak_memory_mb"] >= figures["memory_mb"]
    assert figures["cpu_pct"] > 0
