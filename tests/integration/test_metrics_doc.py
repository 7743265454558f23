"""docs/metrics.md lists what a run logs, all of it and nothing else; TensorBoard shows what the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from callbacks import MetricsLog
from lit_ppo.cli import main
from lit_ppo.store.results import load_run
from lit_ppo.tensorboard import CONFIGURATION, EQUITY, LAYOUT, draw
from tests.integration.shells import fitted
from tests.lit_ppo.test_walk_forward import CONFIG

DOCUMENT = Path(__file__).parents[2] / "docs/metrics.md"


def documented() -> tuple[set[str], set[str]]:
    """Keys of docs/metrics.md: those every run writes, and those marked conditional."""
    always, sometimes = set(), set()
    for row in DOCUMENT.read_text(encoding="utf-8").splitlines():
        if row.startswith("| `"):
            keys = re.findall(r"`([a-z]+/\w+)`", row.split("|")[1])
            (sometimes if "*Conditional:*" in row else always).update(keys)
    return always, sometimes


def read(directory: Path) -> EventAccumulator:
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A walk-forward of two folds that trades and writes TensorBoard events."""
    root = tmp_path_factory.mktemp("logged")
    text = CONFIG.replace("  logger: false\n", "").replace("hold_bias: 0.0", "hold_bias: -3.0")
    (root / "config.yaml").write_text(text)
    flags = ["--data.fold_limit", "2", "--results", str(root / "results")]
    assert main(["walk-forward", "--config", str(root / "config.yaml"), *flags]) == 0
    return root / "results/7"


def test_every_logged_key_is_documented_and_every_documented_key_is_logged(run):
    lines = [(run / "fold_000" / name).read_text().splitlines()[0] for name in MetricsLog.FILES]
    in_files = set().union(*(json.loads(line) for line in lines)) - {"timesteps", "iteration"}
    in_events = {key for part in ("fold_000", "fold_001", "monitor") for key in read(run / part).Tags()["scalars"]}
    in_ledger = {key for fold in load_run(run).folds for key in fold.scores}
    always, sometimes = documented()
    written = in_files | in_events | in_ledger
    assert sorted(written - always - sometimes) == []
    assert sorted(always - written) == []
    assert {key for key in always if key.startswith("test/")} == {key for key in in_ledger if key.startswith("test/")}
    assert in_files <= in_events


def test_a_conditional_key_is_written_by_the_runs_that_the_page_names(tmp_path):
    pytest.importorskip("gymnasium")
    (tmp_path / "config.yaml").write_text(
        "model: {account_at: encoder, estimator: sampled, num_envs: 2, num_steps: 64, total_timesteps: 256,\n"
        "  hidden_size: 4, policy_layers: [8], value_layers: [8], num_minibatches: 2}\n"
        "data: {env_id: CartPole-v1, validation_episodes: 2}\n"
        f"trainer: {{accelerator: cpu, default_root_dir: {tmp_path / 'fit'}, callbacks: [callbacks.MetricsLog]}}\n"
    )
    assert main(["fit", "--config", str(tmp_path / "config.yaml")]) == 0
    keys = {key for line in (tmp_path / "fit/metrics.jsonl").open() for key in json.loads(line)}
    keys -= {"timesteps", "iteration"}
    always, sometimes = documented()
    assert sorted(keys - always - sometimes) == []
    gymnasium = {key for key in sometimes if "episode" in key and not key.startswith("test/")}
    assert sorted(gymnasium - keys) == []


def test_the_shell_by_itself_logs_nothing_else(tmp_path):
    fitted(tmp_path, [MetricsLog()])
    lines = [(tmp_path / name).read_text().splitlines()[0] for name in MetricsLog.FILES]
    logged = set().union(*(json.loads(line) for line in lines)) - {"timesteps", "iteration"}
    assert logged <= set().union(*documented())


def test_the_layout_shows_documented_keys_in_four_groups(run):
    always, sometimes = documented()
    shown = [key for charts in LAYOUT.values() for keys in charts.values() for key in keys]
    assert len(shown) == len(set(shown))
    assert set(shown) <= always | sometimes
    (event,) = read(run / "fold_000").Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [group.title for group in layout.category] == ["learning", "diagnostics", "validation", "time"]
    patterns = [tag for group in layout.category for chart in group.chart for tag in chart.multiline.tag]
    scalars = read(run / "fold_000").Tags()["scalars"]
    assert all(sum(bool(re.search(pattern, tag)) for tag in scalars) == 1 for pattern in patterns)


def test_each_fold_has_the_configuration_its_hparams_with_the_test_metrics_and_an_equity_figure(run):
    folds = load_run(run).folds
    assert len(folds) == 2
    for fold in folds:
        events = read(run / f"fold_{fold.index:03d}")
        text = events.Tensors(f"{CONFIGURATION}/text_summary")[0].tensor_proto.string_val[0].decode()
        assert "hidden_size: 4" in text
        assert "num_bars: 760" in text
        content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        session = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
        assert session.hparams["hidden_size"].number_value == 4
        assert session.hparams["fold"].number_value == fold.index
        content = events.summary_metadata["_hparams_/experiment"].plugin_data.content
        experiment = plugin_data_pb2.HParamsPluginData.FromString(content).experiment
        tested = {key: x for key, x in fold.scores.items() if key.startswith("test/") and x is not None}
        assert {metric.name.tag for metric in experiment.metric_infos} == set(tested)
        for key, value in tested.items():
            assert events.Scalars(key)[-1].value == pytest.approx(value, rel=1e-5)
        image = events.Images(EQUITY)[-1]
        assert (image.width, image.height) == (900, 400)


def test_without_a_logger_there_are_no_events(run, tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    flags = ["--data.fold_limit", "1", "--results", str(tmp_path / "results")]
    assert main(["walk-forward", "--config", str(tmp_path / "config.yaml"), *flags]) == 0
    assert list((tmp_path / "results").rglob("*tfevents*")) == []
    assert list(run.rglob("*tfevents*"))


def test_the_figure_rises_where_the_equity_does_and_draws_ruin_and_nothing():
    rising = draw([("the agent", (255, 0, 0), np.linspace(1.0, 2.0, 50))])
    red = (rising[:, :, 0] > 200) & (rising[:, :, 1] < 60)
    rows, columns = np.nonzero(red[40:, :])
    assert rows[columns == columns.max()].mean() < rows[columns == columns.min()].mean()
    for flat in (np.ones(5), np.zeros(1)):
        assert Image.fromarray(draw([("the agent", (255, 0, 0), flat)])).size == (900, 400)
