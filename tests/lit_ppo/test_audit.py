"""The look-ahead audit: it passes what is honest, and catches a planted leak of each kind."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from datamodules.features.scaling import Scaler
from datamodules.synthetic import SyntheticMarket
from datamodules.walk_forward import WalkForwardDataModule
from lit_ppo.cli import main
from lit_ppo.commands.audit import audit
from lit_ppo.commands.lightning_cli import LitPPOCLI
from lit_ppo.envs.account import ACCOUNT_FEATURES, Account
from lit_ppo.lab.audit import ALTERATIONS, Finding, lively, memory_finding, prefix_findings, warmup_findings
from lit_ppo.lab.null_controls import NULLS, NullResult, edge_p_value, null_frame
from lit_ppo.market.costs import FILLS, CostModel, Costs, fill_delay
from lit_ppo.market.tensors import BarRange
from lit_ppo.module import LitPPO

SIZES = {"train_size": 300, "validation_size": 100, "test_size": 100, "step_size": 100, "warmup_bars": 20}
NETWORK = {"num_networks": 1, "hidden_size": 4, "policy_layers": (8,), "value_layers": (8,)}
ENCODER = {"estimator": "sampled", "account_at": "encoder"}
HEADS = {"estimator": "sampled", "account_at": "heads"}
ARGUMENTS = ["--data.synthetic.kind", "regime", "--data.synthetic.num_bars", "760", "--data.cache", "false"]
ARGUMENTS += [part for name, size in SIZES.items() for part in (f"--data.{name}", str(size))]
ARGUMENTS += ["--model.num_envs", "4", "--model.num_steps", "16", "--model.total_timesteps", "128"]
ARGUMENTS += ["--model.screen_features", "false"]
ARGUMENTS += ["--model.hidden_size", "4", "--trainer.accelerator", "cpu"]
ARGUMENTS += ["--trainer.callbacks+=callbacks.ValidationSelection", "--points", "8", "--null_seeds", "1"]

FEATURES = """
    import numpy as np


    class Centred:
        warmup, parity = 10, -1

        def __call__(self, frame):
            change = frame["close"].diff()
            return change.rolling(5, center=True, min_periods=1).mean().to_numpy()


    class Slow:
        warmup, parity = 5, -1

        def __call__(self, frame):
            return frame["close"].diff().fillna(0.0).ewm(span=40, adjust=False).mean().to_numpy()
"""


def small(cls: type[WalkForwardDataModule] = WalkForwardDataModule, **settings) -> WalkForwardDataModule:
    data = cls(synthetic=SyntheticMarket(num_bars=760, seed=3), cache=False, **{**SIZES, **settings})
    data.setup()
    return data


def findings_of(data: WalkForwardDataModule, points: int = 8, **recipe) -> list[Finding]:
    module = LitPPO(seed=5, **{**NETWORK, **recipe})
    module.build(data.fold_data(0).train)
    seen = module.recipe.account_features
    policy = lively(module.policy, data.fold_data(0).validation, seen, torch.Generator().manual_seed(1))
    return prefix_findings(data, policy, seen, points, np.random.default_rng(0), fill_delay(data.fill))


def failed(findings: list[Finding]) -> set[tuple[str, str]]:
    return {(finding.check, finding.subject) for finding in findings if not finding.holds}


@pytest.fixture
def user_features(tmp_path, monkeypatch) -> str:
    (tmp_path / "audited_features.py").write_text(textwrap.dedent(FEATURES))
    monkeypatch.syspath_prepend(str(tmp_path))
    return "audited_features"


@pytest.mark.parametrize(("recipe", "fill"), [({}, "next_open"), ({}, "next_close"), (ENCODER, "next_open")])
def test_what_is_honest_passes_with_an_agent_that_trades(recipe, fill):
    findings = findings_of(small(fill=fill), points=5, **recipe)
    assert failed(findings) == set()
    assert len(findings) == 4 * 5 + 2
    shares = [int(f.detail.partition("; ")[2].partition(" ")[0]) for f in findings if f.subject == "actions"]
    assert min(shares) >= 10  # per cent of the compared decisions that hold a position


@dataclass(frozen=True)
class RangeCost(CostModel):
    """A share of the range of the bar `lag` bars before: a later one below 0. 99: relative to the whole file."""

    lag: int = 0

    def turnover_cost(self, frame, price, point):
        spans = (frame["high"] - frame["low"]).shift(self.lag).bfill()
        return (0.1 * spans / spans.mean() * 1e-4 if self.lag == 99 else 0.01 * spans / price).to_numpy()


@pytest.mark.parametrize(("lag", "leaks"), [(1, False), (-1, True), (99, True)])
def test_a_cost_model_that_uses_later_bars_is_caught(lag, leaks):
    findings = findings_of(small(costs=Costs(spread="1bp", model=RangeCost(lag))), points=2)
    caught = failed(findings)
    assert (("future bars noise", "costs") in caught) == leaks
    assert {what for _, what in caught} <= {"costs", "equity"}
    (charged,) = [finding.detail for finding in findings if finding.check == "costs"]
    assert "bp of notional" in charged


@pytest.mark.filterwarnings("ignore:data.fill same_close")
@pytest.mark.parametrize("recipe", [HEADS, ENCODER], ids=["heads", "encoder"])
@pytest.mark.parametrize("fill", FILLS)
def test_no_account_feature_looks_ahead(fill, recipe):
    findings = findings_of(small(fill=fill), points=3, **recipe, account_features=tuple(ACCOUNT_FEATURES))
    # A fill in the same bar is always named; no action may depend on what comes after the bar.
    assert failed(findings) == ({("fill", "price of decision t")} if fill == "same_close" else set())


def marked_at_the_coming_fill(account: Account, names: tuple[str, ...]) -> torch.Tensor:
    """The account's features as they once were: up to a price that comes after the decision."""
    unrealised = (account.log_equity - account.entry_log_equity) / (10 * account.reward_scale)
    columns = {"unrealised": unrealised.clamp(-5, 5), "holding_time": torch.log1p(account.bars_held) / 5}
    return torch.stack([columns[name] for name in names if name != "position"], dim=-1).float()


@pytest.mark.parametrize("recipe", [HEADS, ENCODER], ids=["heads", "encoder"])
@pytest.mark.parametrize("fill", [fill for fill in FILLS if fill_delay(fill)])
def test_an_account_marked_at_the_coming_fill_is_caught(fill, recipe, monkeypatch):
    monkeypatch.setattr(Account, "features", marked_at_the_coming_fill)
    seen = {"num_networks": None, "account_features": ("position", "unrealised")}  # a single one may not notice noise
    findings = findings_of(small(fill=fill), points=5, **{**recipe, **seen})
    caught = failed(findings)
    assert ("future bars noise", "actions") in caught
    assert {what for _, what in caught} <= {"actions", "equity"}


def test_every_alteration_changes_all_bars_after_t_and_none_before():
    frame, t = small().bars.frame, 400
    for how, alter in ALTERATIONS.items():
        changed = alter(frame, t, np.random.default_rng(0))
        assert changed.iloc[: t + 1].equals(frame.iloc[: t + 1]), how
        prices = [name for name in frame.columns if name != "time"]
        assert len(changed) == t + 1 or (changed[prices].iloc[t + 1 :] != frame[prices].iloc[t + 1 :]).all(axis=None)


class WholeFileScaler(WalkForwardDataModule):
    def _scaler(self, fold):
        known = ~np.isnan(self._features).any(axis=1)
        honest = super()._scaler(fold)
        return Scaler.fit(self._features[known], [spec.parity for spec in self.specs], honest.reward_scale)


def test_a_scaler_of_the_whole_file_is_caught():
    caught = failed(findings_of(small(WholeFileScaler)))
    assert {(f"future bars {how}", "scaler") for how in ALTERATIONS} <= caught
    assert not any(what == "features" for _, what in caught)


def test_a_centred_window_is_caught_and_named(user_features):
    features = [{"name": "log_return"}, {"class_path": f"{user_features}.Centred"}]
    findings = findings_of(small(features=features, allow_modules=[user_features]))
    assert {(f"future bars {how}", "features") for how in ALTERATIONS} <= failed(findings)
    details = [f.detail for f in findings if f.subject == "features"]
    assert all("first: Centred at t" in detail and "log_return" not in detail for detail in details)


@pytest.mark.filterwarnings("ignore:data.fill same_close")
def test_a_fill_in_the_same_bar_is_caught():
    findings = findings_of(small(fill="same_close"))
    assert failed(findings) == {("fill", "price of decision t")}
    assert "same-bar fill" in findings[-1].detail


class NormalisedByItself(WalkForwardDataModule):
    """The leak lies behind features and scaler: a segment is centred on its own mean."""

    def _segment(self, fold, role):
        market = super()._segment(fold, role)
        return replace(market, features=market.features - market.features.mean(dim=0))


def test_a_leak_behind_the_scaler_is_caught_by_the_actions():
    caught = failed(findings_of(small(NormalisedByItself)))
    assert {what for _, what in caught} >= {"actions"}
    assert not any(what in ("features", "scaler") for _, what in caught)


def test_a_feature_that_needs_more_bars_than_it_declares_is_caught(user_features):
    features = [{"name": "log_return"}, {"class_path": f"{user_features}.Slow"}]
    honest, slow = warmup_findings(small(features=features, allow_modules=[user_features]))
    assert (honest.holds, honest.detail) == (True, "needs 1 bars, declares 1")
    assert not slow.holds
    assert 200 < int(slow.detail.split()[1]) < 500  # (39 / 41)^n = 1e-6: n = 276, and the mean's own size


class SelectsOnTest(WalkForwardDataModule):
    def val_dataloader(self):
        return type(super().val_dataloader())(self.test_segment(self.fold))


class OverlappingValidation(WalkForwardDataModule):
    def setup(self, stage=None):
        fresh = self._bars is None
        super().setup(stage)
        if fresh:
            self.folds = [
                replace(fold, validation=BarRange(fold.validation.start, fold.test.stop)) for fold in self.folds
            ]


def report(cls: type[WalkForwardDataModule], *more: str) -> tuple[int, str]:
    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"), force_terminal=True)  # noqa: SIM115
    code = audit(LitPPOCLI("audit", [*ARGUMENTS, *more], cls), console)
    console.file.close()
    return code, console.export_text()


def leaks(text: str) -> dict[str, str]:
    """Lines of the table that say LEAK, by their check."""
    return {line.split("  ")[1].strip(): line for line in text.splitlines() if "LEAK" in line}


def test_selection_on_test_is_caught_by_the_rows_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text = report(SelectsOnTest, "--null_seeds", "0")
    assert code == 1
    assert "read before the weights were chosen" in leaks(text)["rows read"]
    assert list(tmp_path.iterdir()) == []


def test_training_that_depends_on_test_bars_is_caught_by_its_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text = report(WholeFileScaler, "--null_seeds", "0")
    assert code == 1
    assert "tensors changed" in leaks(text)["test bars noise"]


def test_a_validation_that_reaches_into_test_is_caught(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text = report(OverlappingValidation, "--null_seeds", "0")
    assert code == 1
    assert "fold 0: validation read bars 306..527, and must end before 428" in text


def test_the_command_prints_rows_checks_and_counts_and_exits_with_0_or_1(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["audit", *ARGUMENTS]) == 0
    text = capsys.readouterr().out
    for piece in (
        "24..323",
        "25..325",
        "needs 24 bars, declares 24",
        "seeds show an edge at 5 %",
        "8 random t, 1 seeds",
    ):
        assert piece in text
    assert "LEAK" not in text
    with pytest.warns(UserWarning, match="same_close"):
        assert main(["audit", *ARGUMENTS, "--data.fill", "same_close", "--null_seeds", "0"]) == 1
    assert main(["audit", *ARGUMENTS, "--points", "0"]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", NULLS)
def test_a_null_market_has_valid_bars_without_drift_of_the_same_volatility(kind):
    frame = SyntheticMarket(kind="predictor", num_bars=4000, seed=1).frame()
    null = null_frame(frame, kind, np.random.default_rng(0))
    assert null["time"].equals(frame["time"])
    body = null[["open", "close"]]
    assert (null["high"] >= body.max(axis=1) * (1 - 1e-12)).all()
    assert (null["low"] <= body.min(axis=1) * (1 + 1e-12)).all()
    returns, own = np.diff(np.log(null["close"])), np.diff(np.log(frame["close"]))
    assert abs(returns.mean()) < 1e-3 * returns.std()
    assert returns.std() == pytest.approx(own.std(), rel=0.05)
    assert abs(np.corrcoef(returns[1:], returns[:-1])[0, 1]) < 0.05 < np.corrcoef(own[1:], own[:-1])[0, 1]
    # The signal told the next return; in the null market it does not.
    assert abs(np.corrcoef(null["signal"][:-1], returns)[0, 1]) < 0.05
    with pytest.raises(ValueError, match="null market is one of"):
        null_frame(frame, "sines", np.random.default_rng(0))


def test_without_an_edge_the_rate_of_rejections_is_the_level():
    """1,000 momentum traders on random walks; the 99.9 % band of a binomial with p = 0.05 is 29 to 73."""
    draws = np.random.default_rng(3)
    returns = draws.normal(0, 1e-3, (1000, 300))
    positions = np.sign(np.concatenate([np.zeros((1000, 1)), returns[:, :-1]], axis=1))
    rejections = sum(edge_p_value(a, r) < 0.05 for a, r in zip(positions, returns, strict=True))
    assert 29 <= rejections <= 73
    assert edge_p_value(np.sign(returns[0]), returns[0]) < 1e-6
    assert edge_p_value(np.zeros(300), returns[0]) == 1.0


def test_too_many_rejections_are_called_a_leak_and_a_few_are_called_luck():
    def result(rejections: int, seeds: int) -> bool:
        return NullResult("random walk", [0.01] * rejections + [0.5] * (seeds - rejections), seeds).holds

    assert [result(n, 5) for n in range(6)] == [True, True, True, False, False, False]
    assert [result(n, 100) for n in (0, 9, 11, 12)] == [True, True, True, False]


class Clairvoyant(WalkForwardDataModule):
    """A feature that is the next price return."""

    def _segment(self, fold, role):
        market = super()._segment(fold, role)
        scaled = (market.price_return / market.reward_scale).float().unsqueeze(1)
        return replace(market, features=scaled.expand_as(market.features).clone())


@pytest.mark.slow
def test_null_controls_expose_a_clairvoyant_feature(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    budget = ["--model.total_timesteps", "12000", "--model.hold_bias", "0", "--null_seeds", "3"]
    budget += ["--model.num_envs", "16", "--model.num_steps", "32"]
    code, text = report(Clairvoyant, *budget, "--points", "2")
    assert code == 1
    assert "3 of 3 seeds show an edge" in text
    assert not list(Path().iterdir())


@pytest.mark.parametrize("recipe", [{}, HEADS, ENCODER], ids=["counterfactual", "sampled", "encoder"])
def test_the_lstm_needs_the_warm_up_that_its_memory_is_long(recipe):
    """The forget gate decides: shut, the last bar says all; open, the first bar of the history still does."""
    data = small(warmup_bars=50)
    market = data.fold_data(0).train
    module = LitPPO(seed=1, **NETWORK, **recipe)
    policy = lively(module.build(market), market, module.recipe.account_features, torch.Generator().manual_seed(1))
    sees = module.recipe.account_features

    def finding(forget: float) -> Finding:
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if name.endswith("weight_hh.0"):
                    parameter.zero_()
                elif "encoder" in name and name.endswith("bias.0"):
                    parameter[4:8] = forget  # gate order i, f, g, o
        return memory_finding(market, policy, sees, 50, starts=2)

    forgetful, remembering = finding(-50.0), finding(50.0)
    assert forgetful.holds
    assert "not flat" in forgetful.detail
    assert not remembering.holds
    assert remembering.fault == "TOO SHORT"
    assert "not even after 100 bars" in remembering.detail


def test_the_memory_of_a_model_that_stays_flat_is_not_measured():
    data = small()
    market = data.fold_data(0).train
    module = LitPPO(seed=1, hold_bias=50.0, **NETWORK)
    found = memory_finding(market, module.build(market), module.recipe.account_features, 20)
    assert found.holds is None
    assert "decided nothing" in found.detail
