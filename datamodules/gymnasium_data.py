"""A gymnasium environment in the place of bars: proof that the learner has memory, on tasks that others use too."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import lightning.pytorch as pl
import torch

from datamodules.loader import OneBatch
from lit_ppo.argument_types import allowed_class
from lit_ppo.market.tensors import GymnasiumTask


class GymnasiumDataModule(pl.LightningDataModule):
    """Names an environment; the learner makes `model.num_envs` of it, an evaluation one for each episode.

    Args:
        env_id: as `gymnasium.make` takes it, or the class path of an environment, "my_tasks.Maze"; actions must be
            Discrete or a Box; observations may be Box, Discrete, MultiDiscrete, MultiBinary, or a Tuple or Dict of them
            (choices become columns of 0 and 1).
        mask_observations: columns of the flat observation that the agent does not see, such as velocities: without
            them it has to remember.
        normalise_observations: by running mean and standard deviation; frozen in an evaluation.
        normalise_rewards: by the running standard deviation of the discounted return, for the learner only.
        rescale_actions: continuous actions in [-1, 1] span the action space; otherwise they are in its own units.
        validation_episodes, test_episodes: greedy episodes of an evaluation.
        env_arguments: further arguments of `gymnasium.make`, among them `max_episode_steps`, and of the environment.
        wrappers: around each environment, the first one innermost: class paths, alone or as {class_path, init_args}.
            Those of `gymnasium.wrappers` need no permission.
        training_wrappers: as `wrappers`, around those and in training only: a shaped reward that no evaluation counts.
        allow_modules: modules that an `env_id` ("module:name" or "module.Class") and wrappers may be imported from; on
            the command line they come from `--allow-module` only.

    Raises:
        ValueError: an evaluation without episodes, or an environment or wrapper of a module which is not allowed, or
            that is none.
    """

    def __init__(
        self,
        env_id: str,
        mask_observations: list[int] | None = None,
        normalise_observations: bool = True,
        normalise_rewards: bool = True,
        rescale_actions: bool = True,
        validation_episodes: int = 20,
        test_episodes: int = 100,
        env_arguments: dict[str, Any] | None = None,
        wrappers: list[str | dict[str, Any]] | None = None,
        training_wrappers: list[str | dict[str, Any]] | None = None,
        allow_modules: list[str] | None = None,
    ) -> None:
        super().__init__()
        for name, count in (("validation_episodes", validation_episodes), ("test_episodes", test_episodes)):
            if count < 1:
                raise ValueError(f"data.{name} must be at least 1, got {count}")
        module = env_id.rpartition(":")[0]  # gymnasium imports it
        if module and not any(f"{module}.".startswith(f"{allowed}.") for allowed in allow_modules or ()):
            raise ValueError(
                f"data.env_id {env_id!r} would import module {module}: it was not. If you trust it, add "
                f"--allow-module {module} to the command line"
            )
        self.task = GymnasiumTask(
            env_id,
            tuple(mask_observations or ()),
            normalise_observations,
            normalise_rewards,
            rescale_actions,
            env_arguments or {},
            env_class=self._environment_class(env_id, allow_modules or ()),
            wrappers=self._wrappings("wrappers", wrappers or (), allow_modules or ()),
            training_wrappers=self._wrappings("training_wrappers", training_wrappers or (), allow_modules or ()),
        )
        self._wrapper_entries = {"wrappers": wrappers or [], "training_wrappers": training_wrappers or []}
        self.validation_episodes, self.test_episodes = validation_episodes, test_episodes

    @staticmethod
    def _environment_class(env_id: str, allow_modules: Sequence[str]) -> type[gymnasium.Env] | None:
        if env_id in gymnasium.registry or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", env_id):
            return None
        return allowed_class(env_id, gymnasium.Env, "data.env_id", allow_modules)

    @staticmethod
    def _wrappings(
        key: str, entries: Sequence[str | Mapping[str, Any]], allow_modules: Sequence[str]
    ) -> tuple[Callable[[gymnasium.Env], gymnasium.Wrapper], ...]:
        found = []
        for entry in entries:
            named: dict[str, Any] = {"class_path": entry} if isinstance(entry, str) else dict(entry)
            path, arguments = named.pop("class_path", None), named.pop("init_args", {})
            if named or not isinstance(path, str) or not isinstance(arguments, Mapping):
                raise ValueError(f"data.{key}: a wrapper is a class path, or class_path and init_args; got {entry!r}")
            allowed = (*allow_modules, "gymnasium.wrappers")
            wrapper = allowed_class(path, gymnasium.Wrapper, f"data.{key}", allowed)
            found.append(partial(wrapper, **arguments))
        return tuple(found)

    def train_dataloader(self) -> OneBatch:
        return OneBatch(self.task)

    def val_dataloader(self) -> OneBatch:
        return OneBatch(replace(self.task, role="validation", num_episodes=self.validation_episodes))

    def test_dataloader(self) -> OneBatch:
        return OneBatch(replace(self.task, role="test", num_episodes=self.test_episodes))

    def predict_dataloader(self) -> OneBatch:
        raise ValueError(f"`predict` writes decisions on bars, and {self.task.env_id} has none; `test` plays episodes")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device)

    def state_dict(self) -> dict[str, Any]:
        """What the policy was trained in."""
        task = self.task
        return {
            "env_id": task.env_id,
            "mask_observations": list(task.mask_observations),
            "normalise_observations": task.normalise_observations,
            "normalise_rewards": task.normalise_rewards,
            "rescale_actions": task.rescale_actions,
            "env_arguments": dict(task.env_arguments),
            **self._wrapper_entries,
        }

    @property
    def settings(self) -> dict[str, Any]:
        """What a logger keeps of it, as plain values."""
        episodes = {"validation_episodes": self.validation_episodes, "test_episodes": self.test_episodes}
        return {**self.state_dict(), **episodes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the environment is the checkpoint's.

        Raises:
            ValueError: it is another one; lists what differs.
        """
        now = self.state_dict()
        changed = [
            f"data.{name} was {before!r} and is {value!r}"
            for name, value in now.items()
            if value != (before := state_dict.get(name, []))  # checkpoints of version 0.1 know no wrappers
        ]
        if changed:
            raise ValueError(
                f"The checkpoint was made in another environment: {'; '.join(changed)}. Restore it, or start a new run"
            )
