"""The fills of the test decisions on disk: what the report needs to replay other positions on the same bars.

`results/<seed>/fold_000/test_bars.npz` has one row per row of `out_of_sample.csv` of that fold, in the same order. The
walk-forward writes it before it appends the fold's rows there; baselines, cost stress and delay stress are computed
from it, so none of them needs the bar file or a model.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lit_ppo.store.atomic import atomic_write
from lit_ppo.store.schema import REMEDY

FILE_NAME = "test_bars.npz"
# What numpy and zipfile raise for an archive that is cut, spoilt, another program's, or announces more than there is.
_DAMAGES: tuple[type[Exception], ...] = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    KeyError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    MemoryError,
)
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class FillTable:
    """D test decisions: when, in which fold, and what any position would have earned and paid there.

    Attributes:
        time: [D] open time of bar t, nanoseconds since 1970 UTC.
        fold: [D] fold of the decision.
        fill_price: [D] price at which decision t is executed, price units.
        price_return: [D] rho_t = fill price of t+1 / fill price of t - 1.
        turnover_cost: [D] kappa_t per unit of position changed, fraction of notional, >= 0.
        carry_long, carry_short: [D] swap per unit held from fill t to fill t+1, fraction of notional; positive is paid.
    """

    time: Integers
    fold: Integers
    fill_price: Floats
    price_return: Floats
    turnover_cost: Floats
    carry_long: Floats
    carry_short: Floats

    def __post_init__(self) -> None:
        shapes = {field.name: getattr(self, field.name).shape for field in fields(self)}
        if len(set(shapes.values())) != 1 or self.time.ndim != 1:
            raise ValueError(f"FillTable needs columns of one length [D], got {shapes}")
        bad = [
            name
            for name in ("fill_price", "price_return", "turnover_cost", "carry_long", "carry_short")
            if not np.isfinite(getattr(self, name)).all()
        ]
        if bad:
            raise ValueError(
                f"FillTable holds values that are not finite in {', '.join(bad)}: a decision without a fill"
            )

    def __len__(self) -> int:
        return len(self.time)

    def scaled_costs(self, factor: float) -> FillTable:
        """The same bars with spread, commission, slippage and swap that are `factor` times as high."""
        costs = {name: getattr(self, name) * factor for name in ("turnover_cost", "carry_long", "carry_short")}
        return FillTable(self.time, self.fold, self.fill_price, self.price_return, **costs)


def write_fills(fold_dir: str | Path, fills: FillTable) -> Path:
    """Write `test_bars.npz` into the folder of a fold, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{field.name: getattr(fills, field.name) for field in fields(fills)})
    path = Path(fold_dir) / FILE_NAME
    atomic_write(path, buffer.getvalue())
    return path


def read_fills(run_dir: str | Path, folds: Iterable[int]) -> FillTable:
    """Read the fills of these folds of a run, joined in the order given.

    Raises:
        FileNotFoundError: a fold has none.
        ValueError: a file is not what `write_fills` wrote, or there is no fold.
    """
    parts = [_read(Path(run_dir) / f"fold_{fold:03d}" / FILE_NAME) for fold in folds]
    if not parts:
        raise ValueError(f"{run_dir} has no finished fold, so there are no test fills to read")
    return FillTable(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(FillTable)))


def _read(path: Path) -> FillTable:
    wanted = [field.name for field in fields(FillTable)]
    content = io.BytesIO(path.read_bytes())  # in memory an offset that damage made negative is no error of the disk
    try:
        with np.load(content, allow_pickle=False) as arrays:
            columns = {name: arrays[name] for name in wanted}
        integers = ("time", "fold")
        kinds = {name: np.int64 if name in integers else np.float64 for name in wanted}
        return FillTable(**{name: x.astype(kinds[name], casting="same_kind") for name, x in columns.items()})
    except _DAMAGES as error:
        why = "it is no array file, or a pickle" if "pickle" in str(error) else error  # numpy: how to load it unsafely
        raise ValueError(
            f"{path} is no table of test fills ({why}); it needs the arrays {', '.join(wanted)}. {REMEDY}"
        ) from error
