"""The command line, the help, the shell completions, and `blockops.tap`."""

from __future__ import annotations

import gc
import io
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
from blockops.settings.table import TABLE, Settings

ROOT = Path(__file__).parent.parent.parent


def parse(*arguments: str, environ: Mapping[str, str] | None = None) -> Settings:
    options = Options(environ or {}, system_file="/missing")
    options.parseOptions(list(arguments))
    return options.settings


def error_line(
    case: SynchronousTestCase, *arguments: str, environ: Mapping[str, str] | None = None
) -> str:
    error = case.assertRaises(UsageError, parse, *arguments, environ=environ)
    text = str(error)
    case.assertEqual(len(text.splitlines()), 1, text)
    return text


def printed(*arguments: str) -> str:
    """Return the standard output of an option that ends the process."""
    with mock.patch.object(sys, "stdout", io.StringIO()) as out:
        try:
            parse(*arguments)
        except SystemExit as exit_:
            assert exit_.code == 0
    return out.getvalue()


class CommandLineTests(SynchronousTestCase):
    def test_no_arguments(self):
        self.assertEqual(parse(), Settings())

    def test_every_setting_but_secrets_has_an_option(self):
        known = {each.rstrip("=") for each in Options({}).longOpt}
        for each in TABLE:
            self.assertEqual(each.option in known, not each.is_secret, each.option)
            self.assertEqual(f"no-{each.option}" in known, each.is_flag, each.option)

    def test_values(self):
        settings = parse("--port", "9000", "--heartbeat=2s", "--reasoning=split", "--log-file=off")
        self.assertEqual(settings.port, 9000)
        self.assertEqual(settings.heartbeat, 2.0)
        self.assertEqual(settings.reasoning, "split")
        self.assertIsNone(settings.log_file)

    def test_flags(self):
        on = {"BLOCKOPS_THINK_CALLS": "on"}
        self.assertTrue(parse("--think-calls").think_calls)
        self.assertTrue(parse(environ=on).think_calls)
        self.assertFalse(parse("--no-think-calls", environ=on).think_calls)

    def test_the_last_occurrence_counts(self):
        self.assertEqual(parse("--port=1", "--port=2").port, 2)
        self.assertTrue(parse("--no-think-calls", "--think-calls").think_calls)
        self.assertFalse(parse("--think-calls", "--no-think-calls").think_calls)

    def test_repeated_options_accumulate(self):
        settings = parse(
            "--listen=tcp:1", "--listen", "unix:/a b", environ={"BLOCKOPS_LISTEN": "x"}
        )
        self.assertEqual(settings.listen, ("tcp:1", "unix:/a b"))

    def test_unambiguous_prefixes(self):
        self.assertEqual(parse("--max-conc", "7").max_concurrent, 7)
        self.assertEqual(parse("--heartbeat", "7").heartbeat, 7.0)
        self.assertIn("max-", error_line(self, "--max-", "7"))

    def test_invalid_values(self):
        accepted = "'zzz' is not accepted; give a whole number from 0 to 65535"
        self.assertEqual(error_line(self, "--port", "zzz"), f"--port: {accepted}")
        self.assertEqual(error_line(self, environ={"PORT": "zzz"}), f"PORT: {accepted}")

    def test_errors_name_the_full_option(self):
        self.assertIn("--max-concurrent:", error_line(self, "--max-conc", "-1"))

    def test_unknown_options_and_arguments(self):
        self.assertIn("--prot is not an option", error_line(self, "--prot", "80"))
        self.assertIn("'demo' is not an option", error_line(self, "demo"))
        self.assertIn("-b", error_line(self, "-b", "demo"))

    def test_secrets_are_rejected_and_not_printed(self):
        for arguments in (["--backend-key", "sk-1"], ["--backend-key=sk-1"]):
            text = error_line(self, *arguments)
            self.assertNotIn("sk-1", text)
            self.assertIn("BLOCKOPS_BACKEND_KEY_FILE", text)

    def test_a_flag_with_a_value(self):
        self.assertIn("heartbeat-json", error_line(self, "--heartbeat-json=yes"))

    def test_an_option_without_a_value(self):
        self.assertIn("port", error_line(self, "--port"))

    def test_parsers_share_no_state(self):
        self.assertEqual(parse("--listen=tcp:1").listen, ("tcp:1",))
        self.assertEqual(parse("--listen=tcp:2").listen, ("tcp:2",))


class UnderTwistdTests(SynchronousTestCase):
    """Under `twistd`, which prints all of the help before a UsageError."""

    def test_only_the_error_line_is_printed(self):
        options = Options({})
        options.parent = cast(AnyOptions, object())
        exit_ = self.assertRaises(SystemExit, options.parseOptions, ["--port", "zzz"])
        self.assertTrue(str(exit_.code).startswith("blockops: --port: 'zzz'"))

    def twistd(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", *arguments],
            cwd=ROOT,
            env={"PATH": "/usr/bin:/bin", "HOME": "/missing", "PYTHONPATH": str(ROOT), **environ},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def test_twistd(self):
        result = self.twistd("-n", "--pidfile=", "blockops", "--port", "zzz")
        self.assertEqual(
            (result.returncode, result.stdout, result.stderr),
            (
                1,
                "",
                "blockops: --port: 'zzz' is not accepted; give a whole number from 0 to 65535\n",
            ),
        )

    def test_twistd_with_an_unknown_endpoint_type(self):
        result = self.twistd("-n", "--pidfile=", "blockops", "--listen", "carrier-pigeon:1")
        self.assertEqual(result.returncode, 1)
        self.assertEqual(result.stdout, "")
        self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
        self.assertIn("'carrier-pigeon:1' is not accepted", result.stderr)

    def test_the_version_is_that_of_blockops(self):
        result = self.twistd("blockops", "--version")
        self.assertEqual((result.returncode, result.stdout), (0, f"blockops {__version__}\n"))

    def test_the_help_of_twistd_omits_the_environment(self):
        result = self.twistd("blockops", "--help", BLOCKOPS_BACKEND_KEY="sk-1", PORT="4711")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("--max-concurrent", result.stdout)
        self.assertNotIn("sk-1", result.stdout)
        self.assertNotIn("4711", result.stdout)


class ConfigurationFileTests(SynchronousTestCase):
    """Which configuration file is read."""

    def setUp(self):
        self.home = Path(self.mktemp()).absolute()
        (self.home / ".blockops").mkdir(parents=True)
        self.user_file = self.home / ".blockops" / "config.toml"
        self.system_file = self.home / "system.toml"
        self.other_file = self.home / "other.toml"
        for number, path in enumerate((self.user_file, self.system_file, self.other_file), 1):
            path.write_text(f"port = {number}\n")

    def port(self, *arguments: str, **environ: str) -> int:
        options = Options({"HOME": str(self.home), **environ}, system_file=str(self.system_file))
        options.parseOptions(list(arguments))
        return options.settings.port

    def test_the_users_file(self):
        self.assertEqual(self.port(), 1)

    def test_the_machines_file(self):
        self.user_file.unlink()
        self.assertEqual(self.port(), 2)

    def test_no_file(self):
        self.user_file.unlink()
        self.system_file.unlink()
        self.assertEqual(self.port(), 8080)

    def test_no_home(self):
        options = Options({}, system_file=str(self.system_file))
        options.parseOptions([])
        self.assertEqual(options.settings.port, 2)

    def test_a_named_file(self):
        self.assertEqual(self.port("--config", str(self.other_file)), 3)
        self.assertEqual(self.port(BLOCKOPS_CONFIG=str(self.other_file)), 3)
        self.assertEqual(
            self.port("--config=/dev/null", BLOCKOPS_CONFIG=str(self.other_file)), 8080
        )

    def test_a_named_file_must_exist(self):
        for arguments, environ in (
            (["--config=/missing"], {}),
            (["--config=~no-user-of-this-name/x"], {}),
            ([], {"BLOCKOPS_CONFIG": "/missing"}),
        ):
            text = str(self.assertRaises(UsageError, self.port, *arguments, **environ))
            self.assertIn("cannot be read", text)
            self.assertIn("No such file", text)

    def test_an_invalid_default_file_is_an_error(self):
        self.user_file.write_text("prot = 1\n")
        text = str(self.assertRaises(UsageError, self.port))
        self.assertIn("did you mean port?", text)
        self.assertIn(str(self.user_file), text)

    def test_an_unreadable_default_file_is_an_error(self):
        self.user_file.unlink()
        self.user_file.symlink_to(self.user_file)
        self.assertIn(str(self.user_file), str(self.assertRaises(UsageError, self.port)))

    def test_environment_and_command_line_take_precedence(self):
        self.assertEqual(self.port(PORT="5"), 5)
        self.assertEqual(self.port("--port=6", PORT="5"), 6)


class HelpTests(SynchronousTestCase):
    def setUp(self):
        self.help = Options({"BLOCKOPS_BACKEND_KEY": "sk-1", "PORT": "4711"}).getUsage(80)

    def test_every_setting_with_its_names_and_default(self):
        flat = " ".join(self.help.split())
        for each in TABLE:
            self.assertIn(each.env_var, flat)
            self.assertEqual(f"--{each.option}" in flat, not each.is_secret, each.option)
            self.assertIn(f"{each.help} Default: {each.default_text}.", flat)

    def test_the_environment_is_omitted(self):
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
    """zsh completes by running the command."""

    def test_options_choices_and_files(self):
        out = io.BytesIO()
        options = Options({})
        options._shellCompFile = cast(io.TextIOWrapper, out)
        self.assertRaises(SystemExit, options.parseOptions, ["--", "--_shell-completion", "zsh:2"])
        lines = out.getvalue().decode().splitlines()
        for each in TABLE:
            found = [line for line in lines if f"--{each.option}=[" in line]
            if not each.is_flag:
                self.assertEqual(len(found), not each.is_secret, each.option)
            for choice in each.value_type.choices if not each.is_flag else ():
                self.assertIn(choice, found[0].rpartition(":")[2])
        self.assertTrue(any("--log-file=" in each and "_files" in each for each in lines))
        self.assertTrue(any(each.startswith("'*--listen=") for each in lines))
        port = next(each for each in lines if "--port=" in each)
        self.assertNotIn("_files", port)

    def test_the_plugin_imports_little(self):
        code = (
            "import sys, blockops.tap\n"
            "print([name for name in ('twisted.internet.reactor', 'treq', 'twisted.web',"
            " 'blockops.daemon.service') if name in sys.modules])"
        )
        result = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual(result.stdout.strip(), "[]", result.stderr)


class BashTests(SynchronousTestCase):
    """The script, in a real bash."""

    def complete(self, *words: str) -> list[str]:
        """Return the completions of the last of `words`."""
        script = Path(self.mktemp())
        script.write_text(printed("--bash-completion"))
        program = (
            'compopt() { echo "compopt $*"; }\n'  # the real one works only during completion
            f"source {script}\n"
            'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _blockops; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        try:
            result = subprocess.run(
                ["bash", "--norc", "-uc", program, "bash", *words],
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
        except FileNotFoundError:
            raise SkipTest("bash is missing on this machine") from None
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return result.stdout.split("\n")[:-1]

    def test_the_command(self):
        self.assertEqual(self.complete("twistd", "-n", "blo"), ["blockops"])

    def test_all_options(self):
        completed = {each.rstrip("=") for each in self.complete("twistd", "blockops", "--")}
        known = {f"--{each.rstrip('=')}" for each in Options({}).longOpt}
        self.assertEqual(completed, known)

    def test_an_option_is_followed_by_its_value(self):
        self.assertEqual(
            self.complete("twistd", "-n", "blockops", "--max-conc"),
            ["compopt -o nospace", "--max-concurrent="],
        )

    def test_a_flag_is_followed_by_a_space(self):
        self.assertEqual(self.complete("twistd", "blockops", "--no-heart"), ["--no-heartbeat-json"])

    def test_choices(self):
        self.assertEqual(self.complete("twistd", "blockops", "--reasoning", ""), ["keep", "split"])
        self.assertEqual(self.complete("twistd", "blockops", "--reasoning", "="), ["keep", "split"])
        self.assertEqual(self.complete("twistd", "blockops", "--reasoning", "=", "s"), ["split"])

    def test_files_are_completed_by_bash(self):
        self.assertEqual(self.complete("twistd", "blockops", "--config", "pyp"), [""])

    def test_numbers_have_no_completion(self):
        self.assertEqual(
            self.complete("twistd", "blockops", "--port", ""),
            ["compopt +o bashdefault +o default", ""],
        )


class MakeServiceTests(SynchronousTestCase):
    """`blockops.tap`, which `twistd` calls."""

    def make(self, *arguments: str) -> IService:
        options = Options({"BLOCKOPS_LOG_FILE": "off"}, system_file="/missing")
        options.parseOptions(list(arguments))
        self.patch(tap, "freeze_gc", lambda: None)
        return tap.makeService(options)

    def test_a_daemon(self):
        self.assertTrue(IService.providedBy(self.make("--port=0")))

    def test_objects_created_at_start_are_frozen(self):
        before = gc.get_freeze_count()
        self.addCleanup(gc.unfreeze)
        tap.freeze_gc()
        self.assertGreater(gc.get_freeze_count(), before + 10_000)

    def test_an_invalid_plugin(self):
        def impossible(*_):
            raise ValueError("the dialect 'x' of a plugin has no openers")

        self.patch(service, "make_service", impossible)
        exit_ = self.assertRaises(SystemExit, self.make)
        self.assertEqual(exit_.code, "blockops: the dialect 'x' of a plugin has no openers")

    def test_an_invalid_certificate(self):
        path = Path(self.mktemp()).absolute()
        path.write_text("-----BEGIN CERTIFICATE-----\nMII!!\n-----END CERTIFICATE-----\n")
        exit_ = self.assertRaises(
            SystemExit, self.make, "--backend=https://llm.lan", f"--backend-ca={path}"
        )
        self.assertEqual(
            exit_.code,
            f"blockops: backend-ca: {path} contains an invalid certificate; give a PEM file",
        )

    def test_invalid_endpoints(self):
        for text in ("carrier-pigeon:1", "tcp:http", "tcp", "ssl:1:privateKey=/missing", "unix"):
            exit_ = self.assertRaises(SystemExit, self.make, "--listen=tcp:0", "--listen", text)
            line = str(exit_.code)
            self.assertTrue(line.startswith(f"blockops: listen: '{text}' is not accepted"), line)
            self.assertEqual(len(line.splitlines()), 1, line)
