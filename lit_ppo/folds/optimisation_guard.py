"""An optimisation that fails is left out of its fold; the fold goes on as the plain recipe.

    strict: the error is the run's (default where the environment variable CI is set)
    otherwise: said once with the reason, kept in the ledger, in optimization_summary.json and in the exit code

An optimisation is a callback with a class attribute `optimisation`, its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import lightning.pytorch as pl

from lit_ppo.interrupts import Interrupted

FAILED = "failed"
HOOKS = tuple(name for name in vars(pl.Callback) if name.startswith(("on_", "setup", "teardown")))


def is_strict(asked: bool | None) -> bool:
    """Return what `strict` means: as asked, else whether this is a CI job."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false") if asked is None else asked


def guard(callbacks: Iterable[pl.Callback], say: Callable[[str], None] = print) -> None:
    """Make each optimisation among `callbacks` drop out when one of its hooks raises."""
    for callback in callbacks:
        if getattr(callback, "optimisation", None):
            _Guard(callback, say)


class _Guard:
    """Stands between Lightning and one callback, whose methods it replaces on the instance."""

    def __init__(self, callback: Any, say: Callable[[str], None]) -> None:
        self.name, self.say, self.reason = callback.optimisation, say, ""
        self._withdraw = getattr(callback, "withdraw", None)
        self._save, self._load = callback.state_dict, callback.load_state_dict
        for hook in HOOKS:
            if getattr(type(callback), hook) is not getattr(pl.Callback, hook):
                setattr(callback, hook, self._guarded(getattr(callback, hook)))
        callback.state_dict, callback.load_state_dict = self._state_dict, self._load_state_dict

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(trainer: pl.Trainer, pl_module: Any, *arguments: Any, **keywords: Any) -> None:
            if self.reason:
                pl_module.notes.optimisations[self.name] = {FAILED: self.reason}  # after a resume too
                return
            try:
                method(trainer, pl_module, *arguments, **keywords)
            except Interrupted:
                raise
            except Exception as error:  # whatever it is: the fold does not need this callback
                self.reason = f"{type(error).__name__}: {error}"
                pl_module.notes.optimisations[self.name] = {FAILED: self.reason}
                if self._withdraw is not None:
                    self._withdraw(trainer, pl_module)
                self.say(
                    f"The optimisation {self.name} failed in fold {pl_module.fold[0]} and is left out of it "
                    f"({self.reason}). strict: true makes this fatal"
                )

        return call

    def _state_dict(self) -> dict[str, Any]:
        return {FAILED: self.reason} if self.reason else self._save()

    def _load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if set(state_dict) == {FAILED}:
            self.reason = state_dict[FAILED]
        else:
            self._load(state_dict)
