"""The script that completes `twistd blockops` in bash; zsh ships one for all Twisted commands."""

from __future__ import annotations

from collections.abc import Iterable

from blockops.settings.table import Setting
from blockops.settings.types import Completion

_SCRIPT = """\
# Completes "twistd blockops --..." and "twist blockops --..." in bash. To install it:
#   mkdir -p ~/.local/share/bash-completion/completions
#   twistd blockops --bash-completion > ~/.local/share/bash-completion/completions/twistd
_blockops() {
    local word=${COMP_WORDS[COMP_CWORD]} option=${COMP_WORDS[COMP_CWORD-1]} each seen=
    COMPREPLY=()
    for each in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        [[ $each == blockops ]] && seen=yes
    done
    if [[ ! $seen ]]; then
        # Before the subcommand: its name, otherwise a file's.
        COMPREPLY=($(compgen -W "blockops" -- "$word"))
        return
    fi
    # bash splits "--port=80" into three words.
    [[ $word == "=" ]] && word=
    [[ $option == "=" ]] && option=${COMP_WORDS[COMP_CWORD-2]}
    case $option in
%(cases)s
    esac
    COMPREPLY=($(compgen -W "%(options)s" -- "$word"))
    if [[ ${COMPREPLY[0]-} == *= && ${#COMPREPLY[@]} == 1 ]]; then
        compopt -o nospace
    fi
}
complete -o bashdefault -o default -F _blockops twistd twist
"""


def bash_script(table: Iterable[Setting]) -> str:
    """Return a bash script that completes the options of `table` and their values."""
    options: list[str] = []
    cases: list[str] = []
    for setting in table:
        if setting.is_secret:
            continue
        if setting.is_flag:
            options += [f"--{setting.option}", f"--no-{setting.option}"]
            continue
        value_type = setting.value_type
        options.append(f"--{setting.option}=")
        cases.append(_case(setting.option, value_type.completion, value_type.choices))
    cases.append(_case("config", "files", ()))
    options += ["--config=", "--bash-completion", "--version", "--help"]
    return _SCRIPT % {"cases": "\n".join(cases), "options": " ".join(options)}


def _case(option: str, completion: Completion, choices: tuple[str, ...]) -> str:
    # If COMPREPLY stays empty, bash completes file names.
    action = {
        "choices": f'COMPREPLY=($(compgen -W "{" ".join(choices)}" -- "$word")); ',
        "files": "",
        "nothing": "compopt +o bashdefault +o default; ",
    }
    return f"        --{option}) {action[completion]}return;;"
