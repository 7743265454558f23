"""Save and restore a gymnasium environment in the middle of an episode, as tensors and plain values.

gymnasium has no such call. What an environment and its wrappers remember are their attributes: numbers, strings and
arrays are saved; spaces and specifications never change and are not; anything else is refused, because a resume that
silently forgets a part of the state is worse than none.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec

_FIXED = (gymnasium.Space, EnvSpec, np.random.Generator)  # the generator is saved by its own state


def environment_state(env: gymnasium.Env) -> dict[str, Any]:
    """Return what the next steps of `env` depend on: physics, wrappers (elapsed steps), generator.

    An environment or a wrapper that has `state_dict` and `load_state_dict` describes itself.

    Raises:
        TypeError: it keeps something that cannot be saved.
    """
    inner = env.unwrapped
    generator = inner.np_random.bit_generator
    return {
        "physics": _state(inner),
        "wrappers": [_state(wrapper, skip="env") for wrapper in _wrappers(env)],
        "generator": encode(dict(generator.state), f"generator of {inner}"),
    }


def restore_environment(env: gymnasium.Env, state: dict[str, Any]) -> None:
    """Put `env`, made as the saved one was, where the saved one stood.

    Raises:
        ValueError: it has other wrappers.
    """
    inner, wrappers = env.unwrapped, _wrappers(env)
    if len(wrappers) != len(state["wrappers"]):
        raise ValueError(
            f"The saved environment had {len(state['wrappers'])} wrappers, {env} has {len(wrappers)}. "
            "Make it with the same arguments as before."
        )
    generator = inner.np_random.bit_generator  # made here where it was not yet, which sets `_np_random_seed`
    _set_state(inner, state["physics"])
    for wrapper, saved in zip(wrappers, state["wrappers"], strict=True):
        _set_state(wrapper, saved)
    generator.state = decode(state["generator"])


def _wrappers(env: gymnasium.Env) -> list[gymnasium.Wrapper]:
    found = []
    while isinstance(env, gymnasium.Wrapper):
        found.append(env)
        env = env.env
    return found


def _state(owner: Any, skip: str = "") -> dict[str, Any]:
    if hasattr(owner, "state_dict"):
        return owner.state_dict()
    return {
        name: encode(value, f"{type(owner).__name__}.{name}")
        for name, value in vars(owner).items()
        if name != skip and not isinstance(value, _FIXED) and not callable(value)
    }


def _set_state(owner: Any, saved: dict[str, Any]) -> None:
    if hasattr(owner, "load_state_dict"):
        owner.load_state_dict(saved)
        return
    for name, value in saved.items():
        setattr(owner, name, decode(value))


def encode(value: Any, where: str) -> Any:
    """Return `value` as tensors, numbers, strings, lists and dicts; `where` names it in the error."""
    if value is None or (isinstance(value, bool | float | str) and not isinstance(value, np.generic)):
        return value
    if isinstance(value, int):
        return {"int": str(value)}  # generator states have 128 bits
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {"array": torch.tensor(value)}
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return {"scalar": torch.tensor(value)}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [encode(item, where) for item in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: encode(item, f"{where}[{key!r}]") for key, item in value.items()}}
    raise TypeError(
        f"{where} is a {type(value).__name__}, which a checkpoint cannot hold. Give the environment `state_dict` and "
        "`load_state_dict` methods, or train it without checkpoints."
    )


def decode(value: Any) -> Any:
    """Undo `encode`."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "int":
        return int(content)
    if kind == "array":
        return content.cpu().numpy().copy()
    if kind == "scalar":
        return content.cpu().numpy()[()]
    if kind == "dict":
        return {key: decode(item) for key, item in content.items()}
    items = [decode(item) for item in content]
    return tuple(items) if kind == "tuple" else items
