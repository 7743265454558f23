"""What only a flag may ask for: no configuration file, which may be a stranger's, and no environment variable."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

# What deletes a run or mixes two is asked for in one call; a file asks again in each, and may be a stranger's.
COMMAND_LINE_ONLY = ("resume", "overwrite", "allow_mismatch")
# Environment variables of ours; the last three are for tests.
KNOWN_VARIABLES = ("LIT_PPO_TRACEBACK", "LIT_PPO_FAILPOINT", "LIT_PPO_BAR_FILES", "LIT_PPO_SCREENSHOTS")
_SETTING = re.compile(r"LIT_PPO_.+|PL_(\w+__)?(MODEL|DATA|TRAINER)__\w+")  # PL_: the prefix of LightningCLI


def check_asked_by_flag(config: Mapping[str, Any], arguments: Iterable[str]) -> None:
    """Check that what only the command line may ask for was asked there.

    Args:
        config: what was parsed, from files and flags.
        arguments: the command line.

    Raises:
        ValueError: a configuration file asks to resume, overwrite or mix runs.
    """
    flags = {argument.partition("=")[0].removeprefix("--").replace("-", "_") for argument in arguments}
    for name in COMMAND_LINE_ONLY:
        if config.get(name) and name not in flags:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"A configuration file says {name}: true, and a file cannot ask for that: what continues, deletes or "
                f"mixes runs is asked for on the command line only. Remove the key; if you mean it, add {flag}"
            )


def check_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Check that no environment variable looks like a setting: it would have no effect, and no run would record it.

    Raises:
        ValueError: one does; names it and the flag.
    """
    for name in sorted(environment):
        if name in KNOWN_VARIABLES or not _SETTING.fullmatch(name):
            continue
        key = re.sub(r"^(LIT_PPO|PL)_", "", name).lower().replace("__", ".")
        raise ValueError(
            f"The environment variable {name} is set, and settings are not read from the environment: config.yaml "
            f"would not repeat the run. Unset it, and give --{key} or a --config file; the variable that has a "
            f"meaning is {KNOWN_VARIABLES[0]}"
        )
