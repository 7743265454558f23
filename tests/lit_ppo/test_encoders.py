"""What every encoder keeps, and that each goes the whole way: fit, resume, walk-forward, predict, export, Python."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest
import torch

import lit_ppo
from datamodules.synthetic import SyntheticMarket
from lit_ppo.cli import main
from lit_ppo.nets.encoder import EncoderName
from lit_ppo.nets.gru import GRU, GRUState
from lit_ppo.nets.networks import ENCODERS, PolicyState
from lit_ppo.nets.policy import MarketPolicy
from lit_ppo.recipe import Recipe, differences
from lit_ppo.seeding import make_generator
from tests.integration.shells import ENCODER, fitted, same, weights
from tests.lit_ppo.test_module import Stop, everything

T, S, F, H = 9, 3, 4, 6


def test_the_names_of_recipes_are_the_encoders():
    assert set(get_args(EncoderName)) == set(ENCODERS)


@pytest.fixture(params=ENCODERS)
def encoder(request):
    made = ENCODERS[request.param](F, H, 2, make_generator(1))
    made.initialise("chrono", make_generator(2))
    return made


def test_whole_sequences_are_their_steps_with_resets_before_them(encoder):
    inputs = torch.randn(T, S, F, generator=make_generator(3))
    starts = torch.rand(T, S, generator=make_generator(4)) < 0.3
    state = encoder.initial_state(S)
    assert all(part.shape == (2, S, H) and not part.any() for part in state)
    state = state._make(torch.randn(2, S, H, generator=make_generator(5 + i)) for i in range(len(state)))
    whole, after = encoder(inputs, state, starts)
    steps = []
    for t in range(T):
        state = PolicyState(state).reset_where(starts[t]).policy
        hidden, state = encoder(inputs[t : t + 1], state)
        steps.append(hidden)
    torch.testing.assert_close(whole, torch.cat(steps))
    torch.testing.assert_close(tuple(after), tuple(state))
    assert torch.equal(whole[-1], after.hidden[-1])
    free, _ = encoder(inputs, encoder.initial_state(S))
    assert torch.allclose(free[1:], whole[1:]) != encoder.recurrent


def test_gradients_reach_every_weight_and_shapes_are_checked(encoder):
    inputs = torch.randn(T, S, F, generator=make_generator(3))
    encoder(inputs, encoder.initial_state(S))[0].square().sum().backward()
    reached = [name for name, parameter in encoder.named_parameters() if parameter.grad.any()]
    recurrent = [name for name, _ in encoder.named_parameters() if encoder.recurrent or "weight_hh" not in name]
    assert reached == recurrent
    with pytest.raises(ValueError, match=r"inputs \[T, S, 4\]"):
        encoder(inputs[..., :2], encoder.initial_state(S))
    with pytest.raises(ValueError, match=r"state of \[L, S, H\] = \[2, 3, 6\]"):
        encoder(inputs, encoder.initial_state(S + 1))
    with pytest.raises(ValueError, match=">= 1"):
        type(encoder)(F, 0)


def test_the_gru_is_its_equations():
    gru = GRU(F, H, generator=make_generator(0))
    inputs, hidden = torch.randn(1, S, F, generator=make_generator(1)), torch.randn(S, H, generator=make_generator(2))
    with torch.no_grad():
        for bias in (*gru.bias_ih, *gru.bias_hh):
            bias.normal_(generator=make_generator(3))
        found, after = gru(inputs, GRUState(hidden.unsqueeze(0)))
        x_r, x_z, x_n = (inputs[0] @ gru.weight_ih[0].t() + gru.bias_ih[0]).chunk(3, -1)
        h_r, h_z, h_n = (hidden @ gru.weight_hh[0].t() + gru.bias_hh[0]).chunk(3, -1)
        update = (x_z + h_z).sigmoid()
        candidate = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
    torch.testing.assert_close(found[0], (1 - update) * candidate + update * hidden)
    assert torch.equal(found[0], after.hidden[0])


def test_a_chrono_gru_remembers_for_spread_times():
    gru = MarketPolicy(3, encoder="gru", hidden_size=16, generator=make_generator(0)).networks[0].encoder.policy
    memory = 1 / (1 - gru.bias_ih[0][16:32].sigmoid())  # bars
    torch.testing.assert_close(memory[[0, -1]], torch.tensor([1.5, 200.0]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", [{"encoder": "gru"}, {"encoder": "gru", **ENCODER}, {"encoder": "memoryless"}])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, kind):
    whole = fitted(tmp_path / "whole", everything(), **kind)
    with pytest.raises(KeyError):
        fitted(tmp_path / "cut", [*everything(), Stop(2)], **kind)
    resumed = fitted(tmp_path / "cut", everything(), ckpt_path=tmp_path / "cut", **kind)
    assert same(weights(whole), weights(resumed))
    assert not same(weights(whole), weights(fitted(tmp_path / "fewer", total_timesteps=64, **kind)))


def test_settings_of_earlier_checkpoints_name_their_encoder():
    then = Recipe(encoder="memoryless").to_dict()
    del then["encoder"]
    then["recurrent"] = False
    assert Recipe.from_dict(then).encoder == "memoryless"
    assert differences(then, Recipe(encoder="memoryless").to_dict()) == []
    assert differences(then, Recipe().to_dict()) == ["model.encoder was 'memoryless' and is 'lstm'"]


@pytest.mark.parametrize("name", sorted(set(ENCODERS) - {"lstm"}))  # which every other test uses
def test_each_goes_from_bars_to_decisions_elsewhere(tmp_path, name):
    """A walk-forward; then Python, the command line in pieces, and the exported graph decide alike on new bars."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="an extra: pip install 'lit-ppo[export]'")
    market = {"kind": "regime", "mu": 0.5, "q": 0.02, "cost": 0.01}
    model = {"encoder": name, "num_envs": 8, "num_steps": 32, "burn_in": 8, "hidden_size": 8, "num_layers": 2}
    model |= {"total_timesteps": 2048, "screen_features": False, "hold_bias": 0.1, "num_networks": 2, "mirror": True}
    run = lit_ppo.walk_forward(
        SyntheticMarket(num_bars=620, seed=3, **market).bars().frame,
        model=model,
        config="scratch",
        results=tmp_path / "results",
        seed=7,
        features=[{"name": "log_return"}],
        train_size=400,
        validation_size=80,
        test_size=80,
        step_size=80,
        warmup_bars=20,
        cache=False,
        fold_limit=1,
    )
    assert len(run.folds) == 1
    new = SyntheticMarket(num_bars=200, seed=4, **market).write(tmp_path / "new.csv")
    decided = lit_ppo.load_policy(run).decide(new)
    folder, lines = tmp_path / "results" / "7", new.read_text().splitlines(keepends=True)
    for stop in (90, 91, len(lines)):
        (tmp_path / "part.csv").write_text("".join(lines[:stop]))
        state, output = (str(tmp_path / file) for file in ("signals.state", "signals.csv"))
        command = ["predict", "--ckpt", str(folder), "--data", str(tmp_path / "part.csv"), "--state", state]
        assert main([*command, "--output", output]) == 0
    rows = (tmp_path / "signals.csv").read_text().splitlines()[1:]
    assert [float(row.split(",")[1]) for row in rows] == decided["position"].tolist()
    assert decided["position"].nunique() > 1

    assert main(["export", "--ckpt", str(folder), "--output", str(tmp_path / "policy")]) == 0
    said = json.loads((tmp_path / "policy" / "policy.json").read_text())
    assert (said["network"]["encoder"], said["network"]["recurrent"]) == (name, ENCODERS[name].recurrent)
    session = onnxruntime.InferenceSession(tmp_path / "policy" / "policy.onnx", providers=["CPUExecutionProvider"])
    memory = [key for key in said["inputs"] if key not in ("features", "held")]
    assert memory == list(ENCODERS[name].state_type._fields)
    closes = np.array([float(line.split(",")[4]) for line in lines[1:]])
    inputs = {key: np.zeros(said["inputs"][key]["shape"], np.float32) for key in memory}
    held, positions = said["flat_index"], []
    for row, feature in enumerate(np.diff(np.log(closes)), start=1):
        inputs |= {"features": np.array([feature], np.float32), "held": np.array([held])}
        found = dict(zip(said["outputs"], session.run(None, inputs), strict=True))
        inputs |= {key: found[f"next_{key}"] for key in memory}
        if row >= len(closes) - len(decided):
            held = int(found["action"][0])
            positions.append(said["positions"][held])
    assert positions == decided["position"].tolist()
