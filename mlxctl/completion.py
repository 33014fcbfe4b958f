"""`mlxctl completion`: what a shell needs to complete mlxctl's command lines, and the answers that it asks for.

The scripts hand the line to `mlxctl __complete`, whose first line of output says `files` (the shell completes a file's
name) or `names`, and each further line a name, a tab and what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import typer
from typer._click.shell_completion import split_arg_string
from typer.core import TyperGroup

from mlxctl import output
from mlxctl.call import Call
from mlxctl.candidate import complete
from mlxctl.verb import Verb, make_app

app = make_app("Completion of command lines.")

# bash 3.2, which macOS has, knows neither mapfile nor compopt. Words break at = and :, so it gets the line itself.
_BASH = """_mlxctl() {
    local IFS=$'\\n' reply
    reply=($(command mlxctl __complete bash "${COMP_LINE:0:$COMP_POINT}" "${COMP_WORDS[COMP_CWORD]}" 2>/dev/null))
    if [ "${reply[0]}" = files ]; then
        COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))
    else
        COMPREPLY=("${reply[@]:1}")
        case "${COMPREPLY[0]}" in *=) compopt -o nospace 2>/dev/null ;; esac
    fi
}
complete -F _mlxctl mlxctl
"""
_ZSH = """#compdef mlxctl
_mlxctl() {
    local -a reply names
    local line
    reply=("${(@f)$(command mlxctl __complete zsh "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ $reply[1] == files ]]; then
        _files
        return
    fi
    for line in "${(@)reply[2,-1]}"; do
        names+=("${${line%%$'\\t'*}//:/\\\\:}:${line#*$'\\t'}")
    done
    if [[ ${names[1]} == *=:* ]]; then
        _describe -t names mlxctl names -S ''
    else
        _describe -t names mlxctl names
    fi
}
if [ "$funcstack[1]" = "_mlxctl" ]; then
    _mlxctl "$@"
else
    compdef _mlxctl mlxctl
fi
"""
_FISH = """function __mlxctl_complete
    set -l words (commandline -opc) (commandline -ct)
    set -l reply (command mlxctl __complete fish $words[2..-1] 2>/dev/null)
    if test "$reply[1]" = files
        __fish_complete_path (commandline -ct)
    else
        printf '%s\\n' $reply[2..-1]
    end
end
complete -c mlxctl -f -a '(__mlxctl_complete)'
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}

Shell = Annotated[Literal["bash", "zsh", "fish"], typer.Argument(metavar="bash|zsh|fish", help="Your shell.")]


@app.command("completion", cls=Verb)
def completion(ctx: typer.Context, shell: Shell) -> None:
    """Print the script that makes a shell complete command lines.

    It knows verbs, options and values, and asks a running daemon for models, settings, operations, requests and rules.

    bash: eval "$(mlxctl completion bash)" in ~/.bashrc.

    zsh: eval "$(mlxctl completion zsh)" in ~/.zshrc, after compinit.

    fish: mlxctl completion fish > ~/.config/fish/completions/mlxctl.fish
    """
    Call.of(ctx).show({"shell": shell, "script": _SCRIPTS[shell]}, lambda shown: str(shown["script"]).rstrip())


def answer(root: TyperGroup, arguments: Sequence[str]) -> None:
    """Print what a script asked for: for bash the line and the word as bash broke it, for others the words."""
    shell, *words = arguments
    kept = 0
    if shell == "bash":
        line, broken = words
        words = split_line(line)
        kept = len(words[-1]) - (0 if broken in {"=", ":"} else len(broken))
    found = complete(root, words)
    if found is None:
        output.print_text("files")
        return
    lines = [name[max(0, kept) :] if shell == "bash" else f"{name}\t{' '.join(text.split())}" for name, text in found]
    output.print_text("\n".join(["names", *lines]))


def split_line(line: str) -> list[str]:
    """Return the words of a line that is still being typed, without the program; the last may be empty or unquoted."""
    words = split_arg_string(line)
    if line[-1:].isspace() and not words[-1][-1:].isspace():  # a blank in a quote, or behind a backslash, is the word's
        words.append("")
    return words[1:] or [""]
