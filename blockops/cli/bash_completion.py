"""
Completion of `twistd blockops` in bash.

In zsh, which ships a completion for all of Twisted's commands, there is nothing to install.
"""

from __future__ import annotations

from collections.abc import Iterable

from blockops.settings.table import Setting

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
        # Twisted's own options are left to the shell.
        COMPREPLY=($(compgen -W "blockops" -- "$word"))
        return
    fi
    # "--port=80" reaches us as three words.
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


def bash(table: Iterable[Setting]) -> str:
    """Return a script for bash that completes the options of `table` and their values."""
    options: list[str] = []
    cases: list[str] = []
    for setting in table:
        if setting.secret:
            continue
        if setting.flag:
            options += [f"--{setting.option}", f"--no-{setting.option}"]
            continue
        options.append(f"--{setting.option}=")
        cases.append(_case(setting.option, setting.kind.completion, setting.kind.words))
    cases.append(_case("config", "files", ()))
    options += ["--config=", "--bash-completion", "--version", "--help"]
    return _SCRIPT % {"cases": "\n".join(cases), "options": " ".join(options)}


def _case(option: str, completion: str, words: tuple[str, ...]) -> str:
    # Without an offer of ours, bash completes the names of files.
    offer = {
        "words": f'COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$word")); ',
        "files": "",
        "nothing": "compopt +o bashdefault +o default; ",
    }
    return f"        --{option}) {offer[completion]}return;;"
