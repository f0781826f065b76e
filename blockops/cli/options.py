"""
The command line of `twistd blockops`, made from the table of settings.

Nothing here has a default: an option that was not given leaves the word to the environment, then to
the configuration file, then to the table.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from twisted.python import usage

from blockops import __version__
from blockops.cli import bash_completion as completion
from blockops.settings.table import (
    NO_FILE,
    TABLE,
    File,
    Setting,
    SettingError,
    Settings,
    read_file,
    resolve,
)

#: Read if it exists and no other file is named.
HOME_FILE = ".blockops/config.toml"
SYSTEM_FILE = "/etc/blockops/config.toml"

_CONFIG = "BLOCKOPS_CONFIG"

_INTRODUCTION = (
    "Every setting may stand on the command line, in the environment (by the name in capitals) or"
    " in a TOML file (by the option's name, as in port = 8080); the first of these that gives it"
    " counts. Times are in seconds, or take ms, s, m, h, d; sizes are in bytes, or take k, M, G."
    f" The file is the one that --config names, else ~/{HOME_FILE} if it exists, else"
    f" {SYSTEM_FILE} if it exists."
)

_OTHERS = """\
Other options:
  --config=FILE, {config}
      The TOML file with settings.
  --bash-completion
      Print a script that completes these options in bash.
  --version
      Print blockops' version.
  --help
      Print this.
"""


def _switch(name: str, *, on: bool) -> Callable[[Options], None]:
    def given(self: Options) -> None:
        self.command_line[name] = on

    given.__doc__ = next(each.help for each in TABLE if each.name == name)
    return given


def _one_more(name: str) -> Callable[[Options, str], None]:
    def given(self: Options, value: str) -> None:
        before = self.command_line.get(name, ())
        assert isinstance(before, tuple)
        self.command_line[name] = (*before, value)

    given.__doc__ = next(each.help for each in TABLE if each.name == name)
    return given


def _action(setting: Setting) -> usage.Completer:
    if setting.kind.completion == "words":
        return usage.CompleteList(setting.kind.words)
    if setting.kind.completion == "files":
        return usage.CompleteFiles()
    return usage.Completer()


_WITH_VALUE = [each for each in TABLE if not each.secret and not each.flag]


class Options(usage.Options):
    """
    What `twistd blockops` was told; `settings` holds the outcome once the command line is parsed.

    :param environ: the environment that counts
    :param system_file: the configuration file of the machine
    """

    synopsis = "[options]"
    optParameters = [  # noqa: RUF012 - Twisted reads it so
        *([each.option, None, None, each.help] for each in _WITH_VALUE if not each.repeatable),
        ["config", None, None, "The TOML file with settings."],
    ]
    compData = usage.Completions(
        optActions={each.option: _action(each) for each in _WITH_VALUE}
        | {"config": usage.CompleteFiles("*.toml")},
        multiUse=[each.option for each in TABLE if each.repeatable],
        mutuallyExclusive=[(each.option, f"no-{each.option}") for each in TABLE if each.flag],
    )

    def __init__(
        self, environ: Mapping[str, str] = os.environ, system_file: str = SYSTEM_FILE
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.command_line: dict[str, object] = {}
        self._environ = environ
        self._system_file = system_file

    def opt_bash_completion(self) -> None:
        """Print a script that completes these options in bash."""
        sys.stdout.write(completion.bash(TABLE))
        sys.exit(0)

    def opt_version(self) -> None:
        """Print blockops' version."""
        sys.stdout.write(f"blockops {__version__}\n")
        sys.exit(0)

    def parseArgs(self, *rest: str) -> None:
        if rest:
            raise usage.UsageError(f"{rest[0]!r} is no option; all of blockops' begin with --")

    def postOptions(self) -> None:
        for setting in _WITH_VALUE:
            if self.get(setting.option) is not None:
                self.command_line[setting.name] = self[setting.option]
        try:
            self.settings = self.read()
        except SettingError as error:
            raise usage.UsageError(str(error)) from None

    def read(self) -> Settings:
        """
        Return what is set, the files being read as they are now.

        :raises SettingError: something in them is wrong
        """
        return resolve(self.command_line, self._environ, self._file())

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Parse `options`, and the environment and the file with them.

        :raises usage.UsageError: something is wrong, told in one line; below `twistd`, which would
            print all of the help before it, the process ends with that line instead
        """
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]
        except usage.UsageError as error:
            line = _clearer(str(error))
            if self.parent is None:
                raise usage.UsageError(line) from None
            raise SystemExit(f"blockops: {line}") from None

    def getUsage(self, width: int | None = None) -> str:
        columns = width or max(40, shutil.get_terminal_size().columns)
        parts = [textwrap.fill(_INTRODUCTION, columns) + "\n"]
        for section, settings in groupby(TABLE, attrgetter("section")):
            lines = "\n".join(_described(each, columns) for each in settings)
            parts.append(f"{section}:\n{lines}\n")
        parts.append(_OTHERS.format(config=_CONFIG))
        return "\n" + "\n".join(parts)

    def _file(self) -> File:
        named = self["config"] or self._environ.get(_CONFIG)
        if named:
            # Unlike Path.expanduser, this leaves the home of somebody unknown as it is written.
            return read_file(os.path.expanduser(named))  # noqa: PTH111
        home = self._environ.get("HOME")
        candidates = [Path(home, HOME_FILE)] if home else []
        for path in (*candidates, Path(self._system_file)):
            try:
                path.stat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:
                pass  # It may well be there: reading it says why it cannot be used.
            return read_file(str(path))
        return NO_FILE


for _each in TABLE:
    if _each.repeatable:
        setattr(Options, f"opt_{_each.name}", _one_more(_each.name))
    if _each.flag:
        setattr(Options, f"opt_{_each.name}", _switch(_each.name, on=True))
        setattr(Options, f"opt_no_{_each.name}", _switch(_each.name, on=False))


def _names(setting: Setting) -> str:
    if setting.secret:
        file = f"{setting.environ}_FILE"
        return f"{setting.environ}, or {file} (a file that holds it); not on the command line"
    if setting.flag:
        return f"--{setting.option}, --no-{setting.option}, {setting.environ}"
    return f"--{setting.option}={setting.kind.metavar}, {setting.environ}"


def _described(setting: Setting, width: int) -> str:
    names = textwrap.fill(_names(setting), width, initial_indent="  ", subsequent_indent="    ")
    indent = " " * 6
    help_ = f"{setting.help} Default: {setting.shown}."
    return f"{names}\n" + textwrap.fill(
        help_,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _clearer(message: str) -> str:
    """Say what to do about an option that does not exist, where that is known."""
    unknown = re.fullmatch(r"option --(\S+) not recognized", message)
    if unknown is None:
        return message
    for setting in TABLE:
        if setting.secret and setting.option == unknown[1]:
            return (
                f"--{setting.option}: a secret is not taken from the command line, where everybody"
                f" on this machine can read it; set {setting.environ}, or {setting.environ}_FILE to"
                " the path of a file that holds it"
            )
    return f"--{unknown[1]} is no option; see twistd blockops --help"
