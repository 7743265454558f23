"""A configuration is data: it makes nothing run that the user did not allow on the command line."""

from __future__ import annotations

import importlib
import sys
import textwrap

import pytest
import yaml
from jsonargparse import Namespace

from lit_ppo.class_paths import ALLOWED, refuse_functions, restrict_class_paths, take_allowed_modules
from lit_ppo.cli import main

CONFIG = """
model: {num_envs: 4, num_steps: 16, burn_in: 4, hidden_size: 4, total_timesteps: 64}
data:
  synthetic: {kind: regime, num_bars: 760}
  train_size: 300
  validation_size: 100
  test_size: 100
  step_size: 100
  warmup_bars: 20
  cache: false
trainer: {accelerator: cpu, callbacks: []}
"""
MODULE = """
    from pathlib import Path

    import lightning.pytorch as pl

    Path("imported").touch()


    class Watcher(pl.Callback):
        def on_fit_end(self, trainer, pl_module):
            Path("watched").touch()


    class Gap:
        warmup, parity = 1, -1

        def __call__(self, frame):
            return (frame["open"] - frame["close"].shift(fill_value=0)).to_numpy()
"""


@pytest.fixture
def fit(tmp_path, monkeypatch, capsys):
    """Return a function that fits with changed settings, given as YAML paths; gives exit code and message."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foreign_code.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("foreign_code", None)

    def call(changes: dict, *flags: str) -> tuple[int, str]:
        config = yaml.safe_load(CONFIG)
        for path, value in changes.items():
            *parents, last = path.split(".")
            inner = config
            for part in parents:
                inner = inner[part]
            inner[last] = value
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        code = main(["fit", "--config", "config.yaml", *flags])
        return code, capsys.readouterr().err

    yield call
    sys.modules.pop("foreign_code", None)
    restrict_class_paths()


HOSTILE = {
    "a command": ("trainer.callbacks", [{"class_path": "os.system", "init_args": {"command": "touch imported"}}]),
    "its C twin": ("trainer.callbacks", [{"class_path": "posix.system", "init_args": {"command": "touch imported"}}]),
    "a process": ("trainer.logger", {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "imported"]}}),
    "a module at hand": ("trainer.callbacks", [{"class_path": "foreign_code.Watcher"}]),
    "a plugin": ("trainer.plugins", "foreign_code.Watcher"),
    "a profiler": ("trainer.profiler", {"class_path": "foreign_code.Watcher"}),
    "code from the network": ("trainer.callbacks", [{"class_path": "torch.hub.load", "init_args": {"repo": "x"}}]),
    "a compiler": ("trainer.strategy", {"class_path": "torch.utils.cpp_extension.load", "init_args": {"name": "x"}}),
    "what a module imported": ("trainer.callbacks", [{"class_path": "lit_ppo.store.provenance.subprocess.Popen"}]),
    "a market": ("data.synthetic", {"class_path": "foreign_code.Gap"}),
    "a feature": ("data.features", [{"class_path": "foreign_code.Gap"}]),
    "a feature's command": ("data.features", [{"class_path": "os.system", "command": "touch imported"}]),
    "a cost model": ("data.costs", {"model": {"class_path": "foreign_code.Gap"}}),
    "the rule itself": ("trainer.callbacks", [{"class_path": "jsonargparse.set_parsing_settings"}]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_class_path_outside_the_allowed_packages_is_refused_before_it_is_imported(fit, tmp_path, name):
    key, value = HOSTILE[name]
    code, message = fit({key: value})
    assert code == 2
    assert not (tmp_path / "imported").exists()
    assert "foreign_code" not in sys.modules
    assert "Traceback" not in message
    if isinstance(value, dict):
        value = value.get("model", value)
    named = (
        value["class_path"] if isinstance(value, dict) else value if isinstance(value, str) else value[0]["class_path"]
    )
    assert named.removeprefix("lit_ppo.store.provenance.") in message
    assert "--allow-module" in message


@pytest.mark.parametrize(
    "function", ["torch.utils.collect_env.run", "torch.jit.load", "lightning.pytorch.seed_everything"]
)
def test_a_function_is_no_value(fit, tmp_path, function):
    lambda_callback = {
        "class_path": "lightning.pytorch.callbacks.LambdaCallback",
        "init_args": {"setup": function},
    }
    code, message = fit({"trainer.callbacks": [lambda_callback]})
    assert code == 2
    assert "trainer.callbacks.init_args.setup the function " in message
    assert function.rpartition(".")[2] in message
    assert "Traceback" not in message
    assert not (tmp_path / "results").exists()


def test_a_function_of_a_module_named_on_the_command_line_is_a_value(fit, tmp_path):
    (tmp_path / "foreign_code.py").write_text("def note(*_, **__):\n    open('called', 'w').close()\n")
    lambda_callback = {
        "class_path": "lightning.pytorch.callbacks.LambdaCallback",
        "init_args": {"setup": "foreign_code.note"},
    }
    code, message = fit({"trainer.callbacks": [lambda_callback]}, "--allow-module", "foreign_code")
    assert code == 0, message
    assert (tmp_path / "called").exists()


def test_a_class_path_that_names_a_function_is_refused():
    importlib.import_module("torch.utils.collect_env")
    with pytest.raises(ValueError, match=r"callbacks.class_path the function torch.*run"):
        refuse_functions(Namespace(callbacks=[{"class_path": "torch.utils.collect_env.run"}]))
    refuse_functions(Namespace(logger={"class_path": "lightning.pytorch.loggers.CSVLogger"}, n=3, names=["a"]))


def test_a_configuration_cannot_allow_itself_anything(fit, tmp_path):
    changes = {"data.allow_modules": ["foreign_code"], "data.features": [{"class_path": "foreign_code.Gap"}]}
    code, message = fit(changes)
    assert (code, "foreign_code" in sys.modules) == (2, False)
    assert "add --allow-module foreign_code to the command line" in message


def test_a_module_named_on_the_command_line_is_allowed_for_features_and_callbacks(fit, tmp_path):
    changes = {
        "data.features": [{"name": "log_return"}, {"class_path": "foreign_code.Gap"}],
        "trainer.callbacks": [{"class_path": "foreign_code.Watcher"}],
    }
    code, message = fit(changes, "--allow-module", "foreign_code")
    assert code == 0, message
    assert (tmp_path / "watched").exists()


def test_what_one_command_allowed_the_next_one_does_not(fit):
    changes = {"trainer.callbacks": [{"class_path": "foreign_code.Watcher"}]}
    assert fit(changes, "--allow-module=foreign_code")[0] == 0
    assert fit(changes)[0] == 2


def test_own_lightning_and_torch_classes_need_no_permission(fit):
    callbacks = [
        {"class_path": "callbacks.ValidationSelection"},
        {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "validation/score"}},
    ]
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}}
    code, message = fit({"trainer.callbacks": callbacks, "trainer.logger": logger})
    assert code == 0, message
    assert set(ALLOWED) == {"lit_ppo", "datamodules", "callbacks", "lightning", "torch"}


@pytest.mark.parametrize("names", [["../evil"], ["a b"], [""], ["os.system()"], ["jsonargparse"]])
def test_what_is_no_module_or_would_undo_the_rule_cannot_be_allowed(names):
    with pytest.raises(ValueError, match=r"module|jsonargparse"):
        restrict_class_paths(names)
    restrict_class_paths()


def test_the_flag_is_taken_from_anywhere_in_the_arguments():
    taken = take_allowed_modules(["fit", "--allow-module", "a", "--x=1", "--allow_module=b.c"])
    assert taken == (["fit", "--x=1"], ["a", "b.c"])
    with pytest.raises(ValueError, match="needs the name"):
        take_allowed_modules(["--allow-module"])
    with pytest.raises(ValueError, match="needs the name"):
        take_allowed_modules(["--allow-module", "--seed"])


def test_a_value_is_never_taken_for_the_name_of_a_file(fit, tmp_path):
    """jsonargparse #516: with a file of that name at hand, a value would become the file's content."""
    for name in ("default", "regime", "cpu", "secret.yaml"):
        (tmp_path / name).write_text("[{name: nothing_of_ours}]\n")
    code, message = fit({"data.features": "default"})
    assert code == 0, message
    code, message = fit({"trainer.callbacks": "secret.yaml"})
    assert code == 2
    assert "nothing_of_ours" not in message
    code, message = fit({}, "--model", "secret.yaml")
    assert code == 2
    assert "nothing_of_ours" not in message


def test_yaml_tags_that_make_objects_are_refused(fit, tmp_path):
    (tmp_path / "tagged.yaml").write_text('seed_everything: !!python/object/apply:os.system ["touch imported"]\n')
    code, message = fit({}, "--config", "tagged.yaml")
    assert code == 2
    assert "Traceback" not in message
    assert not (tmp_path / "imported").exists()
