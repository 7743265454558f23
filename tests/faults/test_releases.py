"""C20: files of earlier releases are read, or the message says which version is needed.

`releases/<version>/` is the folder of a run of that release, first fold only, made by the configuration in it; a
release adds its own. Until a version is released its folder may be made anew:

    lit-ppo walk-forward --config config.yaml --data.fold_limit 1
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from datamodules.synthetic import SyntheticMarket
from datamodules.walk_forward import WalkForwardDataModule
from lit_ppo.recipe import Recipe, load_policy
from lit_ppo.scoring.evaluation import evaluate
from lit_ppo.store.checkpoints import CheckpointStore, load_checkpoint
from lit_ppo.store.results import load_run

RELEASES = sorted(path for path in Path(__file__).with_name("releases").iterdir() if path.is_dir())


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def release(request) -> Path:
    return request.param


def test_the_run_of_an_earlier_release_can_be_read_and_its_policy_decides_as_it_did(release, record_property):
    run = load_run(release)
    assert run.record["versions"]["lit-ppo"] == release.name
    assert [fold.status for fold in run.folds] == ["done"]
    assert len(run.metrics(0)) == 4
    policy, recipe = load_policy(load_checkpoint(release / "fold_000" / "selected.ckpt"))
    split = run.record["data"]["split"]
    data = WalkForwardDataModule(
        synthetic=SyntheticMarket(kind="regime", num_bars=760, seed=3), cache=False, warmup_bars=20, **split
    )
    data.setup()
    assert data.fingerprint()["bars_sha256"] == run.record["data"]["bars_sha256"]
    decided = evaluate(policy, data.test_segment(0), recipe.account_features, close_at_end=True)
    np.testing.assert_array_equal(decided.ledger.position, run.out_of_sample["position"])
    record_property("releases read", 1)


def test_the_newest_checkpoint_of_an_earlier_release_is_whole_and_complete(release):
    found = CheckpointStore(release / "fold_000").load_newest()
    assert found is not None
    state, path = found
    assert state["lit_ppo"]["iteration"] == 4
    assert {"learner", "optimizer_states", "callbacks", "loops"} <= set(state)
    assert path.name == json.loads((release / "fold_000/manifest.json").read_text())["entries"][-2]["file"]


def test_settings_of_a_later_release_are_refused_by_name(release, tmp_path):
    shutil.copy(release / "fold_000" / "selected.ckpt", tmp_path / "x.ckpt")
    settings = dict(load_checkpoint(tmp_path / "x.ckpt")["hyper_parameters"])
    settings.pop("seed")
    with pytest.raises(ValueError, match=r"\['invented_later'\] are of another version"):
        Recipe.from_dict({**settings, "invented_later": 1})
