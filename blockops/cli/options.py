"""
The command line of `twistd blockops`, derived from the table of settings.

No option has a default here: if an option is absent, the setting comes from the environment, then
from the configuration file, then from the table.
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
from blockops.cli.bash_completion import bash_script
from blockops.settings.sources import NO_FILE, ConfigFile, SettingError, read_config, resolve
from blockops.settings.table import TABLE, Setting, Settings

#: The configuration file without --config: the first of these two that exists.
HOME_FILE = ".blockops/config.toml"
SYSTEM_FILE = "/etc/blockops/config.toml"

_CONFIG_VAR = "BLOCKOPS_CONFIG"

_INTRODUCTION = (
    "A proxy that turns the tool calls that local models write as text into OpenAI tool_calls."
    " twistd -n blockops runs it in this terminal; twistd blockops runs it in the background."
)

_SOURCES = (
    "Give a setting on the command line, in the environment (by the name in capitals) or in a TOML"
    " file (by the option's name, as in port = 8080); the first of these that gives it counts."
    " Times are in seconds, or take ms, s, m, h, d; sizes are in bytes, or take k, M, G. The file"
    f" is the one that --config names, otherwise ~/{HOME_FILE} if it exists, otherwise"
    f" {SYSTEM_FILE} if it exists."
)

_OTHER_OPTIONS = """\
Other options:
  --config=FILE, {config}
      TOML file with settings.
  --bash-completion
      Print a script that completes these options in bash.
  --version
      Print the version of blockops.
  --help
      Print this help.
"""


def _flag_option(setting: Setting, *, value: bool) -> Callable[[Options], None]:
    def set_flag(self: Options) -> None:
        self.command_line[setting.name] = value

    set_flag.__doc__ = setting.help
    return set_flag


def _append_option(setting: Setting) -> Callable[[Options, str], None]:
    def append(self: Options, value: str) -> None:
        values = self.command_line.get(setting.name, ())
        assert isinstance(values, tuple)
        self.command_line[setting.name] = (*values, value)

    append.__doc__ = setting.help
    return append


def _completer(setting: Setting) -> usage.Completer:
    if setting.value_type.completion == "choices":
        return usage.CompleteList(setting.value_type.choices)
    if setting.value_type.completion == "files":
        return usage.CompleteFiles()
    return usage.Completer()


_WITH_VALUE = [each for each in TABLE if not each.is_secret and not each.is_flag]


class Options(usage.Options):
    """
    The parsed command line of `twistd blockops`.

    :ivar command_line: the values given on the command line, by the names of fields of `Settings`
    :ivar settings: the settings from all sources; set by `parseOptions`
    """

    synopsis = "[options]"
    optParameters = [  # noqa: RUF012 - the type that Twisted reads
        *(
            [each.option, None, None, each.help]
            for each in _WITH_VALUE
            if not each.value_type.is_repeatable
        ),
        ["config", None, None, "TOML file with settings."],
    ]
    compData = usage.Completions(
        optActions={each.option: _completer(each) for each in _WITH_VALUE}
        | {"config": usage.CompleteFiles("*.toml")},
        multiUse=[each.option for each in TABLE if each.value_type.is_repeatable],
        mutuallyExclusive=[(each.option, f"no-{each.option}") for each in TABLE if each.is_flag],
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
        sys.stdout.write(bash_script(TABLE))
        sys.exit(0)

    def opt_version(self) -> None:
        """Print the version of blockops."""
        sys.stdout.write(f"blockops {__version__}\n")
        sys.exit(0)

    def parseArgs(self, *rest: str) -> None:
        if rest:
            raise usage.UsageError(
                f"{rest[0]!r} is not an option; the options of blockops begin with --"
            )

    def postOptions(self) -> None:
        for setting in _WITH_VALUE:
            if self.get(setting.option) is not None:
                self.command_line[setting.name] = self[setting.option]
        try:
            self.settings = self.read_settings()
        except SettingError as error:
            raise usage.UsageError(str(error)) from None

    def read_settings(self) -> Settings:
        """Return the settings, with the files as they are now; may raise `SettingError`."""
        return resolve(self.command_line, self._environ, self._config_file())

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Parse `options`, the environment and the configuration file.

        Under `twistd`, errors are a `SystemExit`: it prints all of the help before a `UsageError`.
        """
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]
        except usage.UsageError as error:
            line = _explain_unknown_option(str(error))
            if self.parent is None:
                raise usage.UsageError(line) from None
            raise SystemExit(f"blockops: {line}") from None

    def getUsage(self, width: int | None = None) -> str:
        columns = width or max(40, shutil.get_terminal_size().columns)
        parts = [f"{textwrap.fill(each, columns)}\n" for each in (_INTRODUCTION, _SOURCES)]
        for section, settings in groupby(TABLE, attrgetter("section")):
            lines = "\n".join(_describe(each, columns) for each in settings)
            parts.append(f"{section}:\n{lines}\n")
        parts.append(_OTHER_OPTIONS.format(config=_CONFIG_VAR))
        return "\n" + "\n".join(parts)

    def _config_file(self) -> ConfigFile:
        path = self["config"] or self._environ.get(_CONFIG_VAR)
        if path:
            # Path.expanduser would raise for an unknown user; this leaves `~name` as it is.
            return read_config(os.path.expanduser(path))  # noqa: PTH111
        home = self._environ.get("HOME")
        candidates = [Path(home, HOME_FILE)] if home else []
        for candidate in (*candidates, Path(self._system_file)):
            try:
                candidate.stat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:
                pass  # It may exist: the error of reading it gives the reason.
            return read_config(str(candidate))
        return NO_FILE


for _each in TABLE:
    if _each.value_type.is_repeatable:
        setattr(Options, f"opt_{_each.name}", _append_option(_each))
    if _each.is_flag:
        setattr(Options, f"opt_{_each.name}", _flag_option(_each, value=True))
        setattr(Options, f"opt_no_{_each.name}", _flag_option(_each, value=False))


def _describe(setting: Setting, width: int) -> str:
    if setting.is_secret:
        file = f"{setting.env_var}_FILE"
        names = (
            f"{setting.env_var}, or {file} (a file that contains it); in the TOML file"
            f" {setting.option} or {setting.option}-file; not on the command line"
        )
    elif setting.is_flag:
        names = f"--{setting.option}, --no-{setting.option}, {setting.env_var}"
    else:
        names = f"--{setting.option}={setting.value_type.metavar}, {setting.env_var}"
    names = textwrap.fill(names, width, initial_indent="  ", subsequent_indent="    ")
    indent = " " * 6
    return f"{names}\n" + textwrap.fill(
        f"{setting.help} Default: {setting.default_text}.",
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _explain_unknown_option(message: str) -> str:
    """Replace getopt's message about an unknown option by one that states the remedy."""
    unknown = re.fullmatch(r"option --(\S+) not recognized", message)
    if unknown is None:
        return message
    for setting in TABLE:
        if setting.is_secret and setting.option == unknown[1]:
            return (
                f"--{setting.option}: not accepted, because every user of this machine can read the"
                f" command line; set {setting.env_var}, or set {setting.env_var}_FILE to the path"
                " of a file that contains the key"
            )
    return f"--{unknown[1]} is not an option; see twistd blockops --help"
