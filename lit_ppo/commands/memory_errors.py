"""Memory that ran out, told with the knobs that lower its use. No torch import."""

from __future__ import annotations

# What torch's allocators say, as a RuntimeError on the CPU and an OutOfMemoryError (a RuntimeError too) on a device.
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory")


def out_of_memory(error: BaseException) -> str | None:
    """Return what to tell the user if `error` says that memory ran out, else None.

    Nothing is changed by itself: a smaller batch would be another training.
    """
    text = str(error)
    if not isinstance(error, MemoryError) and not any(sign in text for sign in _SIGNS):
        return None
    detail = f" ({text.splitlines()[0][:200]})" if text else ""
    return (
        f"Memory ran out{detail}. Every checkpoint written so far is whole. Lower model.num_envs or model.num_steps "
        "(bars of one rollout), model.hidden_size or model.num_networks, or raise model.num_minibatches, in a new run; "
        "or give the same run more memory and --resume it"
    )
