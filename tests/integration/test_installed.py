"""A new user's first hour: the wheel is built and installed, and the commands are typed in an empty folder."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from datamodules.synthetic import SyntheticMarket

REPOSITORY = Path(__file__).parents[2]
PACKED = ("lit_ppo", "datamodules", "callbacks", "configs")
SIZES = [f"--data.{name}_size={bars}" for name, bars in (("train", 600), ("validation", 150), ("test", 200))]
SIZES += ["--data.step_size=200", "--data.fold_limit=2"]


class Terminal:
    """A folder in which the installed program is called, as a shell would; nothing of the repository is in its path."""

    def __init__(self, site: Path, folder: Path) -> None:
        self.site, self.folder = site, folder
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LIT_PPO", "CI"))}
        self.environment = keep | {"PYTHONPATH": str(site), "XDG_CACHE_HOME": str(folder.parent / "cache")}

    def __call__(self, *arguments: str, stdin: str = "", code: int = 0) -> str:
        """Standard output of `lit-ppo ARGUMENTS`."""
        return self._run([str(self.site / "bin" / "lit-ppo"), *arguments], stdin, code)

    def python(self, text: str) -> str:
        return self._run([sys.executable, "-c", text], "", 0)

    def _run(self, command: list[str], stdin: str, code: int) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, input=stdin, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    for package in ("setuptools", "pip"):
        pytest.importorskip(package, reason=f"{package} builds and installs the wheel, and is not installed")
    root = tmp_path_factory.mktemp("installed")
    source, site, folder = root / "source", root / "site", root / "empty"
    for package in PACKED:
        shutil.copytree(REPOSITORY / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    build = "from setuptools.build_meta import build_wheel; build_wheel('wheel')"
    subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, check=True)
    (wheel,) = source.glob("wheel/*.whl")
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, *install], capture_output=True, check=True)
    folder.mkdir()
    return Terminal(site, folder)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_first_hour_of_a_user_who_has_only_the_wheel(terminal: Terminal) -> None:
    folder = terminal.folder
    where = terminal.python("import lit_ppo, datamodules, callbacks; print(lit_ppo.__file__)")
    assert where.startswith(str(terminal.site))

    assert terminal("--help").splitlines()[2].startswith("  lit-ppo walk-forward --config quickstart")
    assert "configs/walk_forward.yaml" in terminal("init")
    assert {"onnx_signal.py", "paper_trading.py", "masked_task.py"} <= {
        path.name for path in folder.glob("configs/examples/*")
    }

    # Files as they come.
    (folder / "bars").mkdir()
    for seed, name in enumerate(("gold", "oil"), 1):
        market = SyntheticMarket("regime", q=0.01, mu=0.3, cost=0.05, num_bars=1_500, seed=seed)
        bars = market.bars().frame.drop(columns="spread").assign(time=pd.date_range("2018-01-01", periods=1_500))
        bars.to_csv(folder / "bars" / f"{name}.csv", index=False)
    rows = "".join(f"2024-01-{day:02d},{day},{day + 1}\n" for day in range(1, 29))
    (folder / "bars" / "closes.csv").write_text("Date,Close,Volume\n" + rows)
    table = terminal("data", "bars", code=2)
    assert "2 of 3 files can be used" in table
    assert "--close_only" in table
    (folder / "bars" / "closes.csv").unlink()

    # A run, its page, its words for scripts.
    run = ["walk-forward", "--config", "zero_shot", *SIZES, "--data.costs.spread"]
    found = json.loads(terminal(*run, "1.5bp", "--data.path", "bars/gold.csv", "--results", "r", "--json"))
    assert found["folds"] == 2
    assert isinstance(found["metrics"]["trades"], int)
    assert Path(found["paths"]["report"]).stat().st_size < 3_000_000
    assert terminal("report", "r/42").strip().endswith("report.html")
    verdict = "import lit_ppo; print(lit_ppo.load_run('r/42').verdict.kind)"
    assert terminal.python(verdict).strip() == found["verdict"]["kind"]

    # Several instruments, and runs side by side.
    text = terminal(*run, "0.02%", "--data.path", "bars/*.csv", "--results", "panel")
    assert "2 instruments at equal risk" in text
    assert (folder / "panel" / "portfolio.html").is_file()
    text = terminal("compare", "panel/gold/42", "panel/oil/42", "--html", "compare.html")
    assert max(map(len, text.splitlines())) <= 80
    assert "other prices at these times: not paired" in text

    # A live loop on standard input, and the policy as a graph.
    header, *lines = (folder / "bars" / "oil.csv").read_text().splitlines(keepends=True)
    said = terminal("predict", "--ckpt", "prior", "--data", "-", "--spread", "1bp", stdin=header + "".join(lines[:320]))
    decisions = [json.loads(line) for line in said.splitlines()]
    assert len(decisions) == 20
    assert {"time", "position", "change", "probability", "close"} <= decisions[0].keys()
    if importlib.util.find_spec("onnx"):
        terminal("export", "--ckpt", "r/42", "--output", "policy")
        assert {path.name for path in folder.glob("policy/*")} == {"policy.onnx", "policy.json", "weights.safetensors"}

    # What could it have found, and which settings?
    edges = ["--kinds=[drift]", "--sharpes=[10]", "--seeds=1", "--folds=1"]
    assert "drift 10" in terminal("power", "--from", "r/42", *edges)
    (folder / "space.yaml").write_text("trials: 2\nspace:\n  model.learning_rate: [0.003, 0.01]\n")
    text = terminal(
        *("search", "--config", "configs/scratch.yaml", "--space", "space.yaml", "--data.path", "bars/gold.csv"),
        *("--data.costs.spread=1bp", *SIZES, "--model.total_timesteps=2048", "--results", "searched"),
    )
    assert "trial   2/2" in text
    assert max(map(len, text.splitlines())) <= 100

    # An environment of one's own, with action masks.
    for name in ("masked_task.py", "masked_task.yaml"):
        shutil.copy(folder / "configs" / "examples" / name, folder)
    task = ["--config", "masked_task.yaml", "--model.total_timesteps=1024"]
    assert "selected.ckpt" in terminal("fit", *task, "--allow-module", "masked_task")
    terminal("fit", *task, "--overwrite", code=2)  # unless it is said that the module is trusted
