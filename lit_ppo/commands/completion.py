"""`lit-ppo completion bash | zsh`: a script with which the shell completes commands, flags and names of recipes.

The script holds every flag as the commands' own `--help` has it now, so that a Tab starts no Python: loading Lightning
alone takes seconds. After an update it is written again.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Mapping, Sequence

from lit_ppo.commands.data_choice import RECIPES

_FLAG = re.compile(r"(?<![\w-])--[A-Za-z][\w.-]*\w")

_BASH = """\
# Completion of lit-ppo for bash; from `lit-ppo completion bash`.
_lit_ppo() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} choices=""
    if [[ $COMP_CWORD -eq 1 ]]; then
        choices="{commands} --help --version"
    elif [[ $before == --config || $before == -c ]]; then
        choices="{recipes}"
    elif [[ $word == -* ]]; then
        case ${{COMP_WORDS[1]}} in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$choices" -- "$word"))
    [[ $before == --config || $before == -c ]] && COMPREPLY+=($(compgen -f -X '!*.yaml' -- "$word"))
}}
complete -o bashdefault -o default -F _lit_ppo lit-ppo
"""
_ZSH = """\
#compdef lit-ppo
# Completion of lit-ppo for zsh; from `lit-ppo completion zsh`.
_lit_ppo() {{
    local -a commands=(
{described}
    )
    local -A flags=(
{flags}
    )
    if (( CURRENT == 2 )); then
        _describe command commands
    elif [[ $words[CURRENT-1] == (--config|-c) ]]; then
        compadd -- {recipes}
        _files -g '*.yaml'
    elif [[ $words[CURRENT] == -* ]]; then
        compadd -- ${{=flags[$words[2]]}}
    else
        _files
    fi
}}
if [[ $funcstack[1] == _lit-ppo ]]; then  # autoloaded from $fpath by the first Tab
    _lit_ppo
else
    compdef _lit_ppo lit-ppo
fi
"""


def completion(arguments: Sequence[str], commands: Mapping[str, str], help_of: Callable[[str], str]) -> int:
    """Run the command; returns the exit code.

    Args:
        arguments: what follows `completion`.
        commands: name -> what it does.
        help_of: name -> what its `--help` prints.
    """
    parser = argparse.ArgumentParser(
        prog="lit-ppo completion",
        description="Print a script that completes commands, flags and recipes.",
        epilog="lit-ppo completion bash > ~/.local/share/bash-completion/completions/lit-ppo\n"
        "lit-ppo completion zsh > DIR/_lit-ppo       # DIR in $fpath, before compinit",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=("bash", "zsh"))
    shell = parser.parse_args(list(arguments)).shell
    print(script(shell, commands, {name: flags_in(help_of(name)) for name in commands}), end="")
    return 0


def flags_in(text: str) -> list[str]:
    """The flags that a help text names, once each, in its order."""
    return list(dict.fromkeys(_FLAG.findall(text)))


def script(shell: str, commands: Mapping[str, str], flags: Mapping[str, Sequence[str]]) -> str:
    """The completion script.

    Args:
        shell: "bash" or "zsh".
        commands: name -> what it does.
        flags: name of a command -> its flags.
    """
    recipes = " ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    if shell == "bash":
        cases = "\n".join(f'            {name}) choices="{" ".join(flags[name])}" ;;' for name in commands)
        return _BASH.format(commands=" ".join(commands), recipes=recipes, cases=cases)
    described = "\n".join(f"        {shlex.quote(f'{name}:{text}')}" for name, text in commands.items())
    table = "\n".join(f"        {name} {shlex.quote(' '.join(flags[name]))}" for name in commands)
    return _ZSH.format(described=described, flags=table, recipes=recipes)
