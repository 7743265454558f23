"""Save and restore a gymnasium environment in the middle of an episode, as tensors and plain values.

gymnasium has no such call. What an environment and its wrappers remember are their attributes: numbers, strings, arrays
and the attributes of plain objects (a deck of cards) are saved; spaces and specifications never change and are not;
anything else is refused, because a resume that silently forgets a part of the state is worse than none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec

_FIXED = (gymnasium.Space, EnvSpec)
_GENERATOR = {"generator": "own"}  # stands for the environment's generator, which is saved by its own state


def environment_state(env: gymnasium.Env) -> dict[str, Any]:
    """Return what the next steps of `env` depend on: physics, wrappers (elapsed steps), generator.

    An environment or a wrapper that has `state_dict` and `load_state_dict` describes itself.

    Raises:
        TypeError: it keeps something that cannot be saved.
    """
    inner = env.unwrapped
    generator = inner.np_random.bit_generator
    return {
        "physics": _state(inner, inner.np_random),
        "wrappers": [_state(wrapper, inner.np_random, skip="env") for wrapper in _wrappers(env)],
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
    _set_state(inner, state["physics"], inner.np_random)
    for wrapper, saved in zip(wrappers, state["wrappers"], strict=True):
        _set_state(wrapper, saved, inner.np_random)
    generator.state = decode(state["generator"])


def _wrappers(env: gymnasium.Env) -> list[gymnasium.Wrapper]:
    found = []
    while isinstance(env, gymnasium.Wrapper):
        found.append(env)
        env = env.env
    return found


def _state(owner: Any, generator: np.random.Generator, skip: str = "") -> dict[str, Any]:
    if hasattr(owner, "state_dict"):
        return owner.state_dict()
    return _attributes(owner, generator, skip)


def _set_state(owner: Any, saved: dict[str, Any], generator: np.random.Generator) -> None:
    if hasattr(owner, "load_state_dict"):
        owner.load_state_dict(saved)
    else:
        _set_attributes(owner, saved, generator)


def _attributes(
    owner: Any, generator: np.random.Generator, skip: str = "", where: str = "", above: Sequence[Any] = ()
) -> dict[str, Any]:
    """What `owner` remembers; `above`: the objects whose attribute it is, which it must not lead back to."""
    found: dict[str, Any] = {}
    where = where or type(owner).__name__
    for name, value in vars(owner).items():
        if name == skip or isinstance(value, _FIXED) or callable(value):
            continue
        if value is generator:
            found[name] = _GENERATOR
        elif _is_plain_object(value) and not any(value is one for one in (*above, owner)):
            found[name] = {"object": _attributes(value, generator, "", f"{where}.{name}", (*above, owner))}
        else:
            found[name] = encode(value, f"{where}.{name}")
    return found


def _is_plain_object(value: Any) -> bool:
    """Whether `value` is nothing but its attributes: of a class written in Python that extends no built-in type."""
    kinds = type(value).__mro__[:-1]
    return bool(kinds) and hasattr(value, "__dict__") and all(hasattr(kind, "__weakref__") for kind in kinds)


def _set_attributes(owner: Any, attributes: dict[str, Any], generator: np.random.Generator) -> None:
    for name, value in attributes.items():
        if value == _GENERATOR:
            setattr(owner, name, generator)
        elif isinstance(value, dict) and "object" in value:  # it is there already: the environment was made alike
            _set_attributes(getattr(owner, name), value["object"], generator)
        else:
            setattr(owner, name, decode(value))


def encode(value: Any, where: str) -> Any:
    """Return `value` as tensors, numbers, strings, lists and dicts; `where` names it in the error."""
    if value is None or (isinstance(value, bool | float | str) and not isinstance(value, np.generic)):
        return value
    if isinstance(value, int):
        return {"int": str(value)}  # generator states have 128 bits
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {"array": torch.tensor(value)}
    if isinstance(value, np.ndarray) and value.dtype.kind == "U":
        return {"strings": [value.dtype.str, list(value.shape), value.ravel().tolist()]}
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
    if kind == "strings":
        dtype, shape, texts = content
        return np.array(texts, dtype=dtype).reshape(shape)
    if kind == "dict":
        return {key: decode(item) for key, item in content.items()}
    items = [decode(item) for item in content]
    return tuple(items) if kind == "tuple" else items
