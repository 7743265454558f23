"""`lit-ppo export`: the folder is enough to decide as lit-ppo does, with numpy and onnxruntime only."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from lit_ppo.cli import main
from lit_ppo.signals import export
from lit_ppo.signals.checkpoint_choice import choose_checkpoint

pytest.importorskip("onnxruntime", reason="onnxruntime is an extra: pip install 'lit-ppo[export]'")
DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE, GUIDE = DOCS / "examples" / "onnx_signal.py", DOCS / "signals.md"


@pytest.fixture(scope="module")
def exported(run_folder, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("export") / "policy"
    assert main(["export", "--ckpt", str(run_folder), "--output", str(directory)]) == 0
    return directory


def features_snippet() -> str:
    """The lines of the user guide that make features.csv."""
    (block,) = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return block


def alone(*arguments: str) -> list[str]:
    """The command that runs the example, which must not lean on what happens to be installed."""
    code = (
        "import runpy, sys\nfor name in ('torch', 'lightning', 'pandas', 'lit_ppo', 'datamodules'):\n"
        "    sys.modules[name] = None\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return [sys.executable, "-I", "-c", f"import sys\nsys.argv = {[str(EXAMPLE), *arguments]!r}\n{code}"]


def test_the_example_alone_decides_as_lit_ppo_predict(run_folder, new_bars, exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported, "policy")
    shutil.copy(new_bars, "new_bars.csv")
    exec(compile(features_snippet(), str(GUIDE), "exec"), {})
    done = subprocess.run(alone("policy", "features.csv"), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = ["--output", str(tmp_path / "signals.csv")]
    assert main(["predict", "--ckpt", str(run_folder), "--data", str(new_bars), *files]) == 0
    _, *ours = (tmp_path / "signals.csv").read_text().splitlines()
    header, *theirs = done.stdout.splitlines()
    assert header == "time,position,probability"
    assert len(theirs) == 450 - 24 - 30
    assert len({row.split(",")[1] for row in theirs}) > 1
    assert [row.split(",")[1] for row in theirs] == [row.split(",")[1] for row in ours]
    times = [pd.to_datetime([row.split(",")[0] for row in rows], utc=True) for rows in (theirs, ours)]
    assert times[0].equals(times[1])
    chances = [np.array([float(row.split(",")[i]) for row in rows]) for rows, i in ((theirs, 2), (ours, 3))]
    np.testing.assert_allclose(*chances, atol=2e-6)
    followed(done.stdout.splitlines()[1:])


def followed(rows: list[str]) -> None:
    """The example follows features.csv as it grows, and the paper account reads what it says.

    Args:
        rows: what it said of the whole table: time,position,probability.
    """
    lines = Path("features.csv").read_text().splitlines(keepends=True)
    growing = Path("growing.csv")
    growing.write_text("".join(lines[:300]) + lines[300][:20])
    with subprocess.Popen(alone("policy", "growing.csv", "--follow"), stdout=subprocess.PIPE, text=True) as process:
        try:
            with growing.open("a") as file:
                said = [json.loads(process.stdout.readline()) for _ in range(300 - 1 - 24 - 30)]
                file.write(lines[300][20:] + lines[299] + "".join(lines[301:]))  # 299 comes again: not decided twice
                file.flush()
                said += [json.loads(process.stdout.readline()) for _ in range(len(rows) - len(said))]
        finally:
            process.kill()
    assert [f"{x['time']},{x['position']},{x['probability']:.6f}" for x in said] == rows
    trade = runpy.run_path(str(EXAMPLE.parent / "paper_trading.py"))["trade"]
    account = list(trade(map(json.dumps, said)))
    assert [position for _, position, _ in account] == [x["position"] for x in said]
    changes = np.diff([0.0, *(x["position"] for x in said)])
    assert [x["change"] for x in said] == changes.tolist()


def test_policy_json_says_what_the_graph_takes_and_where_it_comes_from(run_folder, exported):
    policy = json.loads((exported / "policy.json").read_text())
    chosen = choose_checkpoint(str(run_folder))
    assert policy["checkpoint"]["sha256"] == chosen.sha256
    assert policy["checkpoint"]["fold"] == 1
    assert policy["positions"] == [-1.0, 0.0, 1.0]
    assert policy["scaler"]["mean"] == chosen.data["scaler"]["mean"]
    assert policy["scaler"]["std"] == chosen.data["scaler"]["std"]
    assert policy["features"][1]["entry"] == {"name": "log_return", "bars": 12}
    assert (policy["bar_seconds"], policy["warmup_bars"], policy["fill"]) == (900, 30, "next_open")
    network = policy["network"]
    assert (
        network["num_networks"] * network["views"]
        == len(network["sequences"])
        == policy["inputs"]["hidden"]["shape"][1]
    )
    assert len(network["screen_gain"]) == len(network["mirror_sign"]) == 5
    assert len(network["hold_bias"]) == network["num_networks"] == 2
    assert str(run_folder) not in (exported / "policy.json").read_text()


def test_weights_are_the_checkpoints_own(run_folder, exported):
    policy, _ = choose_checkpoint(str(run_folder)).load_policy()
    weights = load_file(exported / "weights.safetensors")
    assert weights.keys() == policy.state_dict().keys()
    for name, tensor in policy.state_dict().items():
        assert np.array_equal(weights[name], tensor.numpy()), name


def test_an_export_again_gives_the_same_bytes(run_folder, exported, tmp_path):
    assert main(["export", "--ckpt", str(run_folder), "--output", str(tmp_path / "again")]) == 0
    for name in export.FILES:
        assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes(), name


def test_a_missing_package_is_named_with_its_remedy(run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    assert main(["export", "--ckpt", str(run_folder), "--output", str(tmp_path / "x")]) == 1
    said = capsys.readouterr().err
    assert "pip install 'lit-ppo[export]'" in said
    assert not (tmp_path / "x").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(run_folder, tmp_path, capsys):
    (tmp_path / "x").write_text("mine")
    assert main(["export", "--ckpt", str(run_folder), "--output", str(tmp_path / "x")]) == 2
    assert "Name another one" in capsys.readouterr().err
    assert main(["export", "--ckpt", str(tmp_path / "none"), "--output", str(tmp_path / "y")]) == 2
    assert "there is nothing of that name" in capsys.readouterr().err
