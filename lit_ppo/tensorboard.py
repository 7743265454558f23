"""What TensorBoard shows besides the curves: their layout, the configuration, and each fold's test.

    at the start of a training   custom-scalar layout (learning, diagnostics, validation, time), configuration as text
    after a fold's test          hparams with the test metrics, equity of the test as a figure

docs/metrics.md lists every key. The figure is drawn with Pillow, which TensorBoard itself needs for images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from lit_ppo.scoring.performance import equity_curve

Floats = NDArray[np.float64]
# Group -> chart -> keys; TensorBoard's "Custom Scalars" page.
LAYOUT: dict[str, dict[str, list[str]]] = {
    "learning": {
        "loss": ["train/loss", "train/policy_loss", "train/value_loss"],
        "entropy, nats": ["train/entropy"],
        "coefficients": ["train/learning_rate", "train/ent_coef", "train/clip_coef"],
        "what the policy does": ["train/exposure", "train/turnover_per_bar"],
    },
    "diagnostics": {
        "size of an update": ["train/approx_kl", "train/clip_fraction"],
        "critic": ["train/explained_variance"],
        "gradient norm": ["train/gradient_norm"],
        "epochs": ["train/epochs"],
    },
    "validation": {
        "score": ["validation/score"],
        "return, %": ["validation/return_pct", "validation/max_drawdown_pct", "validation/cost_pct"],
        "ratios, annual": ["validation/sharpe_annual", "validation/sortino_annual", "validation/calmar"],
        "trading": ["validation/exposure", "validation/turnover_per_bar", "validation/win_rate"],
    },
    "time": {
        "timesteps a second": ["time/steps_per_s"],
        "seconds of an iteration": ["time/rollout_s", "time/update_s"],
    },
}
CONFIGURATION, EQUITY = "configuration", "test/equity"
SIZE, MARGIN = (900, 400), (70, 30)  # pixels: width and height; left and right, top and bottom
AGENT, HOLD, LINE, INK = (24, 95, 165), (150, 150, 150), (215, 215, 215), (60, 60, 60)


def write_configuration(writer: SummaryWriter, configuration: str) -> None:
    """Write the layout of the curves and the configuration (YAML) that they belong to."""
    charts = {
        group: {title: ["Multiline", [f"^{key}$" for key in keys]] for title, keys in named.items()}
        for group, named in LAYOUT.items()
    }
    writer.add_custom_scalars(charts)
    indented = "".join(f"    {line}\n" for line in configuration.splitlines())  # a code block of Markdown
    writer.add_text(CONFIGURATION, indented)


class ConfigurationText(pl.Callback):
    """Calls `write_configuration` on the TensorBoard loggers of a training when it starts, or starts again."""

    def __init__(self, configuration: str) -> None:
        self.configuration = configuration

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    write_configuration(logger.experiment, self.configuration)


def write_test(
    directory: Path,
    settings: Mapping[str, Any],
    scores: Mapping[str, float | None],
    net_returns: Floats,
    hold: Floats,
    timesteps: int,
) -> None:
    """Write the test of a fold beside the curves of its training.

    Args:
        directory: of the fold's events.
        settings: hyper-parameters.
        scores: `test/...` figures; None where there is no number.
        net_returns, hold: [D] of the agent and of buy and hold.
        timesteps: bars visited: the x axis.
    """
    metrics = {key: value for key, value in scores.items() if key.startswith("test/") and value is not None}
    plain = {key: x if isinstance(x, (bool, int, float, str)) else str(x) for key, x in settings.items()}
    with SummaryWriter(str(directory)) as writer:
        for summary in hparams(plain, metrics):
            writer._get_file_writer().add_summary(summary)
        for key, value in metrics.items():
            writer.add_scalar(key, value, timesteps)
        curves = [("buy and hold", HOLD, equity_curve(hold)), ("the agent", AGENT, equity_curve(net_returns))]
        writer.add_image(EQUITY, draw(curves), timesteps, dataformats="HWC")


def draw(curves: Sequence[tuple[str, tuple[int, int, int], Floats]]) -> NDArray[np.uint8]:
    """Draw equity curves, the last one on top: [height, width, 3].

    Args:
        curves: label, colour and equity [D] of each, from 1 at the start.
    """
    (width, height), (side, edge) = SIZE, MARGIN
    image = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(image)
    paths = [np.concatenate(([1.0], values)) for _, _, values in curves]
    low, high = min(path.min() for path in paths), max(path.max() for path in paths)
    room = 0.05 * (high - low) or 0.01
    low, high = low - room, high + room

    def row(value: float) -> float:
        return edge + (height - 2 * edge) * (high - value) / (high - low)

    for value in (low, 1.0, high):
        pen.line([(side, row(value)), (width - edge, row(value))], fill=LINE)
        pen.text((6, row(value) - 6), f"{value:.4f}", fill=INK)
    for (label, colour, _), path, order in zip(curves, paths, range(len(curves)), strict=True):
        columns = np.linspace(side, width - edge, len(path))
        points = [(float(x), row(float(y))) for x, y in zip(columns, path, strict=True)]
        pen.line(points, fill=colour, width=2)
        pen.text((side + 10 + 150 * order, 8), f"{label} {100 * (path[-1] - 1):+.2f} %", fill=colour)
    pen.text((width - 260, height - 20), "equity of the test bars, start = 1", fill=INK)
    return np.asarray(image)
