"""docs/metrics.md lists what a run logs, all of it and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

from callbacks import MetricsLog
from tests.integration.shells import fitted

DOCUMENT = Path(__file__).parents[2] / "docs/metrics.md"


def test_every_logged_key_is_documented_and_every_documented_key_is_logged(tmp_path):
    fitted(tmp_path, [MetricsLog()])
    lines = [(tmp_path / name).read_text().splitlines()[0] for name in MetricsLog.FILES]
    logged = set().union(*(json.loads(line) for line in lines)) - {"timesteps", "iteration"}
    rows = [row.split("|")[1] for row in DOCUMENT.read_text(encoding="utf-8").splitlines() if row.startswith("| `")]
    documented = [key for row in rows for key in re.findall(r"`([a-z]+/\w+)`", row)]
    assert sorted(documented) == sorted(logged)
