"""The command line, the help, and what the shells complete."""

from __future__ import annotations

import gc
import io
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast
from unittest import mock

from twisted.application.service import IService
from twisted.python.usage import Options as AnyOptions
from twisted.python.usage import UsageError
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from blockops import __version__, tap
from blockops.cli.options import Options
from blockops.daemon import service
from blockops.daemon.signals import Held
from blockops.settings.table import TABLE, Settings

ROOT = Path(__file__).parent.parent.parent


def parse(*line: str, environ: Mapping[str, str] | None = None) -> Settings:
    parsed = Options(environ or {}, system_file="/nowhere")
    parsed.parseOptions(list(line))
    return parsed.settings


def line_of_error(case: SynchronousTestCase, *line: str, environ: Mapping[str, str] | None = None):
    error = case.assertRaises(UsageError, parse, *line, environ=environ)
    text = str(error)
    case.assertEqual(len(text.splitlines()), 1, text)
    return text


def printed(*line: str) -> str:
    """Return what is printed on standard output before the parser leaves the process."""
    with mock.patch.object(sys, "stdout", io.StringIO()) as out:
        try:
            parse(*line)
        except SystemExit as leaving:
            assert leaving.code == 0
    return out.getvalue()


class CommandLineTests(SynchronousTestCase):
    def test_nothing_given(self):
        self.assertEqual(parse(), Settings())

    def test_every_option_but_secrets_is_there(self):
        known = {each.rstrip("=") for each in Options({}).longOpt}
        for each in TABLE:
            self.assertEqual(each.option in known, not each.secret, each.option)
            self.assertEqual(f"no-{each.option}" in known, each.flag, each.option)

    def test_values(self):
        settings = parse("--port", "9000", "--heartbeat=2s", "--reasoning=split", "--log-file=off")
        self.assertEqual(settings.port, 9000)
        self.assertEqual(settings.heartbeat, 2.0)
        self.assertEqual(settings.reasoning, "split")
        self.assertIsNone(settings.log_file)

    def test_switches(self):
        on = {"BLOCKOPS_THINK_CALLS": "on"}
        self.assertTrue(parse("--think-calls").think_calls)
        self.assertTrue(parse(environ=on).think_calls)
        self.assertFalse(parse("--no-think-calls", environ=on).think_calls)

    def test_the_last_word_counts(self):
        self.assertEqual(parse("--port=1", "--port=2").port, 2)
        self.assertTrue(parse("--no-think-calls", "--think-calls").think_calls)
        self.assertFalse(parse("--think-calls", "--no-think-calls").think_calls)

    def test_listen_adds_up(self):
        settings = parse(
            "--listen=tcp:1", "--listen", "unix:/a b", environ={"BLOCKOPS_LISTEN": "x"}
        )
        self.assertEqual(settings.listen, ("tcp:1", "unix:/a b"))

    def test_names_may_be_cut_short_while_they_are_clear(self):
        self.assertEqual(parse("--max-conc", "7").max_concurrent, 7)
        self.assertEqual(parse("--heartbeat", "7").heartbeat, 7.0)
        self.assertIn("max-", line_of_error(self, "--max-", "7"))

    def test_bad_values(self):
        accepted = "'zzz' is not accepted; give a whole number from 0 to 65535"
        self.assertEqual(line_of_error(self, "--port", "zzz"), f"--port: {accepted}")
        self.assertEqual(line_of_error(self, environ={"PORT": "zzz"}), f"PORT: {accepted}")

    def test_a_cut_name_is_told_in_full(self):
        self.assertIn("--max-concurrent:", line_of_error(self, "--max-conc", "-1"))

    def test_unknown_options_and_words(self):
        self.assertIn("--prot is no option", line_of_error(self, "--prot", "80"))
        self.assertIn("'demo' is no option", line_of_error(self, "demo"))
        self.assertIn("-b", line_of_error(self, "-b", "demo"))

    def test_secrets_are_refused_without_being_repeated(self):
        for line in (["--backend-key", "sk-1"], ["--backend-key=sk-1"]):
            text = line_of_error(self, *line)
            self.assertNotIn("sk-1", text)
            self.assertIn("BLOCKOPS_BACKEND_KEY_FILE", text)

    def test_a_switch_takes_no_value(self):
        self.assertIn("heartbeat-json", line_of_error(self, "--heartbeat-json=yes"))

    def test_an_option_without_its_value(self):
        self.assertIn("port", line_of_error(self, "--port"))

    def test_two_parsers_share_nothing(self):
        self.assertEqual(parse("--listen=tcp:1").listen, ("tcp:1",))
        self.assertEqual(parse("--listen=tcp:2").listen, ("tcp:2",))


class BelowTwistdTests(SynchronousTestCase):
    """Under `twistd`, which answers a UsageError with all of the help and then the error."""

    def test_the_process_ends_with_the_line_alone(self):
        below = Options({})
        below.parent = cast(AnyOptions, object())
        leaving = self.assertRaises(SystemExit, below.parseOptions, ["--port", "zzz"])
        self.assertTrue(str(leaving.code).startswith("blockops: --port: 'zzz'"))

    def twistd(self, *line: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", *line],
            cwd=ROOT,
            env={"PATH": "/usr/bin:/bin", "HOME": "/nowhere", "PYTHONPATH": str(ROOT), **environ},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def test_the_real_one(self):
        ended = self.twistd("-n", "--pidfile=", "blockops", "--port", "zzz")
        self.assertEqual(
            (ended.returncode, ended.stdout, ended.stderr),
            (
                1,
                "",
                "blockops: --port: 'zzz' is not accepted; give a whole number from 0 to 65535\n",
            ),
        )

    def test_the_real_one_with_an_endpoint_that_is_none(self):
        ended = self.twistd("-n", "--pidfile=", "blockops", "--listen", "carrier-pigeon:1")
        self.assertEqual(ended.returncode, 1)
        self.assertEqual(ended.stdout, "")
        self.assertEqual(len(ended.stderr.splitlines()), 1, ended.stderr)
        self.assertIn("'carrier-pigeon:1' is not accepted", ended.stderr)

    def test_the_version_is_blockops_own(self):
        ended = self.twistd("blockops", "--version")
        self.assertEqual((ended.returncode, ended.stdout), (0, f"blockops {__version__}\n"))

    def test_the_help_of_the_real_one_shows_nothing_of_the_environment(self):
        ended = self.twistd("blockops", "--help", BLOCKOPS_BACKEND_KEY="sk-1", PORT="4711")
        self.assertEqual(ended.returncode, 0, ended.stderr)
        self.assertIn("--max-concurrent", ended.stdout)
        self.assertNotIn("sk-1", ended.stdout)
        self.assertNotIn("4711", ended.stdout)


class ConfigurationFileTests(SynchronousTestCase):
    """Which file is read."""

    def setUp(self):
        self.home = Path(self.mktemp()).absolute()
        (self.home / ".blockops").mkdir(parents=True)
        self.of_user = self.home / ".blockops" / "config.toml"
        self.of_system = self.home / "system.toml"
        self.other = self.home / "other.toml"
        for number, path in enumerate((self.of_user, self.of_system, self.other), 1):
            path.write_text(f"port = {number}\n")

    def port(self, *line: str, **environ: str) -> int:
        parsed = Options({"HOME": str(self.home), **environ}, system_file=str(self.of_system))
        parsed.parseOptions(list(line))
        return parsed.settings.port

    def test_the_users_own(self):
        self.assertEqual(self.port(), 1)

    def test_that_of_the_system(self):
        self.of_user.unlink()
        self.assertEqual(self.port(), 2)

    def test_none(self):
        self.of_user.unlink()
        self.of_system.unlink()
        self.assertEqual(self.port(), 8080)

    def test_no_home(self):
        parsed = Options({}, system_file=str(self.of_system))
        parsed.parseOptions([])
        self.assertEqual(parsed.settings.port, 2)

    def test_the_one_that_is_named(self):
        self.assertEqual(self.port("--config", str(self.other)), 3)
        self.assertEqual(self.port(BLOCKOPS_CONFIG=str(self.other)), 3)
        self.assertEqual(self.port("--config=/dev/null", BLOCKOPS_CONFIG=str(self.other)), 8080)

    def test_the_named_one_must_exist(self):
        for line, environ in (
            (["--config=/nowhere"], {}),
            (["--config=~nobody-of-this-name/x"], {}),
            ([], {"BLOCKOPS_CONFIG": "/nowhere"}),
        ):
            text = str(self.assertRaises(UsageError, self.port, *line, **environ))
            self.assertIn("cannot be read", text)
            self.assertIn("No such file", text)

    def test_a_broken_default_file_stops_the_start(self):
        self.of_user.write_text("prot = 1\n")
        text = str(self.assertRaises(UsageError, self.port))
        self.assertIn("did you mean port?", text)
        self.assertIn(str(self.of_user), text)

    def test_a_default_file_that_cannot_be_looked_at_stops_the_start(self):
        self.of_user.unlink()
        self.of_user.symlink_to(self.of_user)
        self.assertIn(str(self.of_user), str(self.assertRaises(UsageError, self.port)))

    def test_environment_and_command_line_are_stronger(self):
        self.assertEqual(self.port(PORT="5"), 5)
        self.assertEqual(self.port("--port=6", PORT="5"), 6)


class HelpTests(SynchronousTestCase):
    def setUp(self):
        self.help = Options({"BLOCKOPS_BACKEND_KEY": "sk-1", "PORT": "4711"}).getUsage(80)

    def test_every_setting_with_all_its_names_and_its_default(self):
        flat = " ".join(self.help.split())
        for each in TABLE:
            self.assertIn(each.environ, flat)
            self.assertEqual(f"--{each.option}" in flat, not each.secret, each.option)
            self.assertIn(f"{each.help} Default: {each.shown}.", flat)

    def test_the_environment_stays_out(self):
        self.assertNotIn("sk-1", self.help)
        self.assertNotIn("4711", self.help)

    def test_lines_fit(self):
        for width in (60, 80, 120):
            lines = Options({}).getUsage(width).splitlines()
            self.assertEqual([each for each in lines if len(each) > width], [])

    def test_printed(self):
        text = printed("--help")
        for option in ("--config", "--bash-completion", "--version", "--help", "--port"):
            self.assertIn(option, text)

    def test_version(self):
        self.assertEqual(printed("--version"), f"blockops {__version__}\n")


class ZshTests(SynchronousTestCase):
    """zsh completes by asking the command itself."""

    def test_options_words_and_files(self):
        out = io.BytesIO()
        asked = Options({})
        asked._shellCompFile = cast(io.TextIOWrapper, out)
        self.assertRaises(SystemExit, asked.parseOptions, ["--", "--_shell-completion", "zsh:2"])
        lines = out.getvalue().decode().splitlines()
        for each in TABLE:
            found = [line for line in lines if f"--{each.option}=[" in line]
            if not each.flag:
                self.assertEqual(len(found), not each.secret, each.option)
            for word in each.kind.words if not each.flag else ():
                self.assertIn(word, found[0].rpartition(":")[2])
        self.assertTrue(any("--log-file=" in each and "_files" in each for each in lines))
        self.assertTrue(any(each.startswith("'*--listen=") for each in lines))
        port = next(each for each in lines if "--port=" in each)
        self.assertNotIn("_files", port)

    def test_what_twistd_imports_for_it_is_light(self):
        code = (
            "import sys, blockops.tap\n"
            "print([name for name in ('twisted.internet.reactor', 'treq', 'twisted.web',"
            " 'blockops.service') if name in sys.modules])"
        )
        ended = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual(ended.stdout.strip(), "[]", ended.stderr)


class BashTests(SynchronousTestCase):
    """The script, in a real bash."""

    def complete(self, *words: str) -> list[str]:
        """Return what is offered for the last of `words`."""
        script = Path(self.mktemp())
        script.write_text(printed("--bash-completion"))
        program = (
            'compopt() { echo "compopt $*"; }\n'  # the real one works while one types, only
            f"source {script}\n"
            'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _blockops; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        try:
            ended = subprocess.run(
                ["bash", "--norc", "-uc", program, "bash", *words],
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
        except FileNotFoundError:
            raise SkipTest("there is no bash on this machine") from None
        self.assertEqual((ended.returncode, ended.stderr), (0, ""))
        return ended.stdout.split("\n")[:-1]

    def test_the_command(self):
        self.assertEqual(self.complete("twistd", "-n", "blo"), ["blockops"])

    def test_all_options(self):
        offered = {each.rstrip("=") for each in self.complete("twistd", "blockops", "--")}
        known = {f"--{each.rstrip('=')}" for each in Options({}).longOpt}
        self.assertEqual(offered, known)

    def test_one_option_waits_for_its_value(self):
        self.assertEqual(
            self.complete("twistd", "-n", "blockops", "--max-conc"),
            ["compopt -o nospace", "--max-concurrent="],
        )

    def test_one_switch_is_finished(self):
        self.assertEqual(self.complete("twistd", "blockops", "--no-heart"), ["--no-heartbeat-json"])

    def test_words(self):
        self.assertEqual(self.complete("twistd", "blockops", "--reasoning", ""), ["keep", "split"])
        self.assertEqual(self.complete("twistd", "blockops", "--reasoning", "="), ["keep", "split"])
        self.assertEqual(self.complete("twistd", "blockops", "--reasoning", "=", "s"), ["split"])

    def test_files_are_left_to_bash(self):
        self.assertEqual(self.complete("twistd", "blockops", "--config", "pyp"), [""])

    def test_nothing_is_made_up_for_numbers(self):
        self.assertEqual(
            self.complete("twistd", "blockops", "--port", ""),
            ["compopt +o bashdefault +o default", ""],
        )


class MakeServiceTests(SynchronousTestCase):
    """`blockops.tap`, which `twistd` calls."""

    def make(self, *line: str) -> IService:
        parsed = Options({"BLOCKOPS_LOG_FILE": "off"}, system_file="/nowhere")
        parsed.parseOptions(list(line))
        self.patch(tap, "settle", lambda: None)
        return tap.makeService(parsed)

    def test_a_daemon(self):
        self.assertTrue(IService.providedBy(self.make("--port=0")))

    def test_a_hangup_is_held_while_the_daemon_starts(self):
        before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
        self.addCleanup(signal.signal, signal.SIGHUP, before)
        parsed = tap.Options({"BLOCKOPS_LOG_FILE": "off"}, system_file="/nowhere")
        parsed.parseOptions(["--port=0"])
        os.kill(os.getpid(), signal.SIGHUP)
        held = signal.getsignal(signal.SIGHUP)
        assert isinstance(held, Held)
        self.assertTrue(held.came)
        self.assertEqual(parsed.settings.port, 0)

    def test_what_is_here_when_it_runs_is_not_looked_at_again(self):
        before = gc.get_freeze_count()
        self.addCleanup(gc.unfreeze)
        tap.settle()
        self.assertGreater(gc.get_freeze_count(), before + 10_000)

    def test_what_cannot_be_made(self):
        def impossible(*_):
            raise ValueError("the format 'x' of a plugin has no openers")

        self.patch(service, "make_service", impossible)
        leaving = self.assertRaises(SystemExit, self.make)
        self.assertEqual(leaving.code, "blockops: the format 'x' of a plugin has no openers")

    def test_endpoints_that_are_none(self):
        for text in ("carrier-pigeon:1", "tcp:http", "tcp", "ssl:1:privateKey=/nowhere", "unix"):
            leaving = self.assertRaises(SystemExit, self.make, "--listen=tcp:0", "--listen", text)
            line = str(leaving.code)
            self.assertTrue(line.startswith(f"blockops: listen: '{text}' is not accepted"), line)
            self.assertEqual(len(line.splitlines()), 1, line)
