"""How settings are read, and which of several sources counts."""

from __future__ import annotations

import contextlib
import re
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.settings import types as kinds
from blockops.settings.table import TABLE, File, SettingError, Settings, read_file, resolve
from blockops.settings.types import Kind, Refused

#: One accepted and one refused value, as text, for each setting; a new setting must be added.
EXAMPLES: dict[str, tuple[str, Any, str]] = {
    "backend": ("https://llm.lan:1234/v1", "https://llm.lan:1234", "llm.lan"),
    "backend_key": ("sk-1234", "sk-1234", "sk 1234"),
    "connect_timeout": ("2s", 2.0, "-1"),
    "first_byte_timeout": ("1h", 3600.0, "1w"),
    "connect_retries": ("0", 0, "101"),
    "circuit_after": ("0", 0, "never"),
    "circuit_pause": ("10s", 10.0, "0"),
    "idle_timeout": ("5m", 300.0, "five"),
    "max_duration": ("8h", 28800.0, "0"),
    "max_answer": ("1M", 1 << 20, "1"),
    "port": ("9000", 9000, "65536"),
    "interface": ("::", "::", "eth0"),
    "listen": ("tcp:1 tcp:2", ("tcp:1", "tcp:2"), ""),
    "max_body": ("1G", 1 << 30, "1T"),
    "max_connections": ("10", 10, "0"),
    "max_connections_per_client": ("0", 0, "-1"),
    "header_timeout": ("1.5", 1.5, "1e3"),
    "client_timeout": ("250ms", 0.25, "0"),
    "drain": ("0", 0.0, "31d"),
    "api_keys_file": ("/etc/keys", Path("/etc/keys"), "a\0b"),
    "insecure_public": ("on", True, "hm"),
    "forward_auth": ("on", True, "hm"),
    "cors_origin": (
        "https://Chat.example:443/ http://[::1]:80 *",
        ("https://chat.example", "http://[::1]", "*"),
        "chat.example",
    ),
    "allowed_host": ("GPU.lan. b", ("gpu.lan", "b"), "gpu.lan:80"),
    "admin_listen": ("tcp:1 tcp:2", ("tcp:1", "tcp:2"), ""),
    "max_concurrent": ("8", 8, "0"),
    "max_queue": ("0", 0, "-1"),
    "max_queued_bytes": ("1G", 1 << 30, "1"),
    "queue_timeout": ("60", 60.0, "never"),
    "heartbeat": ("15", 15.0, "0"),
    "heartbeat_style": ("chunk", "chunk", "Comment"),
    "heartbeat_json": ("yes", True, "maybe"),
    "whole_as_stream": ("on", True, "perhaps"),
    "max_event": ("16m", 16 << 20, "16 m"),
    "translate": ("always", "always", "never"),
    "model_alias": ("a=b/c d=e=f", {"a": "b/c", "d": "e=f"}, "a"),
    "tools": ("prompt", "prompt", "none"),
    "tool_format": ("xml", "xml", "two words"),
    "fenced_calls": ("1", True, "2"),
    "reasoning": ("split", "split", "drop"),
    "think_prefilled": ("ON", True, "ja"),
    "think_calls": ("true", True, "t"),
    "max_hold": ("1024", 1024, "1023"),
    "token_warn_threshold": ("1000", 1000, "0"),
    "token_hard_threshold": ("200000", 200_000, "200k"),
    "token_target": ("60000", 60_000, "half"),
    "reset_pattern": ("/fresh", re.compile("/fresh"), "("),
    "reset_on_shrink": ("on", True, "sometimes"),
    "cache_reset": ("POST /flush_cache", "POST /flush_cache", "flush"),
    "max_sessions": ("10", 10, "0"),
    "session_idle": ("1h", 3600.0, "-5"),
    "notices": ("header", "header", "both"),
    "cold_start_notice": ("0", 0.0, "soon"),
    "model_name": ("Qwen 3.5 ✓", "Qwen 3.5 ✓", "two\nlines"),
    "log_file": ("/tmp/x.log", Path("/tmp/x.log"), "a\0b"),
    "log_body": ("0", 0, "-1"),
    "log_size": ("1MiB", 1 << 20, "1MB"),
    "log_keep": ("1", 1, "0"),
    "memory_poll": ("1m", 60.0, ""),
    "memory_gate": ("on", True, "half"),
}

#: What the contract promises by name.
ESTABLISHED = {
    "BACKEND_URL": "http://127.0.0.1:8082",
    "PORT": 8080,
    "MODEL_NAME": "",
    "MAX_CONCURRENT": 3,
    "MAX_QUEUE": 64,
    "QUEUE_TIMEOUT": 300,
    "TOKEN_WARN_THRESHOLD": 80_000,
    "TOKEN_HARD_THRESHOLD": 100_000,
    "TOKEN_TARGET": None,
    "BLOCKOPS_LOG_FILE": Path("~/.blockops/proxy.log").expanduser(),
}


def read(kind: Kind, value: object) -> object:
    return kind.read(value)


class TableTests(SynchronousTestCase):
    """What every setting must have."""

    def test_every_setting_has_an_example_here(self) -> None:
        # A PEM file has to exist: it has tests of its own.
        self.assertEqual(set(EXAMPLES) | {"backend_ca"}, {each.name for each in TABLE})

    def test_every_setting_reads_its_example_from_each_source(self) -> None:
        for setting in TABLE:
            if setting.name not in EXAMPLES:
                continue
            text, value, _ = EXAMPLES[setting.name]
            from_line = resolve({setting.name: text}, {})
            from_environ = resolve({}, {setting.environ: text})
            from_file = resolve({}, {}, File("f", {setting.option: text}))
            for settings in (from_line, from_environ, from_file):
                self.assertEqual(getattr(settings, setting.name), value, setting.name)

    def test_every_setting_refuses_with_its_names_the_value_and_what_is_accepted(self) -> None:
        for setting in TABLE:
            if setting.name not in EXAMPLES:
                continue
            bad = EXAMPLES[setting.name][2]
            error = self.assertRaises(SettingError, resolve, {setting.name: bad}, {})
            line = str(error)
            self.assertEqual(len(line.splitlines()), 1, line)
            self.assertIn(f"--{setting.option}", line)
            self.assertIn(setting.kind.accepts, line)
            (self.assertNotIn if setting.secret else self.assertIn)(repr(bad), line)

    def test_established_names_and_defaults(self) -> None:
        by_environ = {each.environ: each.name for each in TABLE}
        for environ, value in ESTABLISHED.items():
            self.assertEqual(getattr(Settings(), by_environ[environ]), value)

    def test_the_target_follows_the_hard_threshold(self) -> None:
        self.assertEqual(Settings(token_hard_threshold=30_000).target, 15_000)
        self.assertEqual(Settings(token_target=7).target, 7)

    def test_a_target_above_the_hard_threshold(self) -> None:
        environ = {"TOKEN_TARGET": "101", "TOKEN_HARD_THRESHOLD": "100"}
        error = self.assertRaises(SettingError, resolve, {}, environ)
        self.assertIn("TOKEN_TARGET: 101", str(error))
        self.assertIn("100", str(error))

    def test_one_authorization_for_the_backend(self) -> None:
        environ = {"BLOCKOPS_BACKEND_KEY": "sk-1", "BLOCKOPS_FORWARD_AUTH": "on"}
        error = self.assertRaises(SettingError, resolve, {}, environ)
        self.assertIn("forward-auth", str(error))
        self.assertIn("backend-key", str(error))
        self.assertNotIn("sk-1", str(error))

    def test_other_environment_names_are_the_options_in_capitals(self) -> None:
        for each in TABLE:
            if each.environ not in ESTABLISHED:
                self.assertEqual(each.environ, "BLOCKOPS_" + each.option.upper().replace("-", "_"))

    def test_defaults_are_of_their_own_kind(self) -> None:
        for each in TABLE:
            value = getattr(Settings(), each.name)
            if each.name in ("backend_ca", "backend_key", "token_target", "api_keys_file"):
                self.assertIsNone(value)
            elif each.name == "log_file":
                self.assertEqual(each.kind.read(each.shown), value)
            else:
                self.assertEqual(each.kind.read(value), value)
                self.assertEqual(type(each.kind.read(value)), type(value), each.name)

    def test_help_tells_something_and_ends_as_a_sentence(self) -> None:
        for each in TABLE:
            self.assertTrue(each.help.endswith("."), each.name)
            self.assertTrue(each.shown, each.name)

    def test_sections_are_not_torn_apart(self) -> None:
        sections = [each.section for each in TABLE]
        together = [s for i, s in enumerate(sections) if i == 0 or sections[i - 1] != s]
        self.assertEqual(len(together), len(set(together)))

    def test_settings_do_not_change_and_hide_the_key(self) -> None:
        settings = Settings(backend_key="sk-hidden")
        self.assertRaises(FrozenInstanceError, setattr, settings, "port", 1)
        self.assertNotIn("sk-hidden", repr(settings))
        self.assertEqual({each.name for each in TABLE}, {each.name for each in fields(Settings)})


class PrecedenceTests(SynchronousTestCase):
    """Command line over environment over file over default."""

    file = File("f.toml", {"port": 3, "backend-key": "file-key"})

    def test_order(self) -> None:
        self.assertEqual(resolve({}, {}).port, 8080)
        self.assertEqual(resolve({}, {}, self.file).port, 3)
        self.assertEqual(resolve({}, {"PORT": "2"}, self.file).port, 2)
        self.assertEqual(resolve({"port": "1"}, {"PORT": "2"}, self.file).port, 1)

    def test_a_weaker_source_is_not_even_read(self) -> None:
        self.assertEqual(resolve({"port": "1"}, {"PORT": "junk"}).port, 1)

    def test_the_command_line_can_switch_off_what_the_environment_switches_on(self) -> None:
        on = {"BLOCKOPS_HEARTBEAT_JSON": "1"}
        self.assertTrue(resolve({}, on).heartbeat_json)
        self.assertFalse(resolve({"heartbeat_json": False}, on).heartbeat_json)

    def test_an_empty_variable_is_not_set(self) -> None:
        self.assertEqual(resolve({}, {"PORT": ""}, self.file).port, 3)
        self.assertEqual(resolve({}, {"BLOCKOPS_BACKEND_KEY": ""}).backend_key, None)

    def test_an_empty_variable_means_none_where_empty_is_a_value(self) -> None:
        file = File("f", {"log-file": "/x", "model-name": "M"})
        settings = resolve({}, {"BLOCKOPS_LOG_FILE": "", "MODEL_NAME": ""}, file)
        self.assertEqual((settings.log_file, settings.model_name), (None, ""))

    def test_an_empty_option_is_a_bad_value(self) -> None:
        self.assertRaises(SettingError, resolve, {"port": ""}, {})

    def test_endpoints_of_the_command_line_keep_their_spaces(self) -> None:
        settings = resolve({"listen": ("unix:/a b", "tcp:1")}, {})
        self.assertEqual(settings.listen, ("unix:/a b", "tcp:1"))


class MessageTests(SynchronousTestCase):
    """One line, whatever the value; no secret in it."""

    def line(self, *args: Any) -> str:
        return str(self.assertRaises(SettingError, resolve, *args))

    def test_the_source_is_named_as_the_user_wrote_it(self) -> None:
        accepted = "'zzz' is not accepted; give a whole number from 0 to 65535"
        self.assertEqual(self.line({"port": "zzz"}, {}), f"--port: {accepted}")
        self.assertEqual(self.line({}, {"PORT": "zzz"}), f"PORT: {accepted}")
        self.assertEqual(
            self.line({}, {}, File("/a/b.toml", {"port": "zzz"})), f"port in /a/b.toml: {accepted}"
        )

    def test_strange_characters_do_not_break_the_line(self) -> None:
        line = self.line({}, {"PORT": "1\n2\r\x1b[31m\u2028\x85"})
        self.assertEqual(len(line.splitlines()), 1)
        self.assertNotIn("\x1b", line)

    def test_a_long_value_is_cut(self) -> None:
        self.assertLess(len(self.line({"port": "9" * 100_000}, {})), 320)

    def test_a_password_in_an_address_is_not_shown(self) -> None:
        line = self.line({"backend": "http://me:hunter2@host"}, {})
        self.assertNotIn("hunter2", line)
        self.assertIn("without a user", line)

    def test_more_secrets_in_an_address(self) -> None:
        for address in ("ftp://me:hun@ter2@host", "ftp://host/?key=hunter2", "http://h/?k=hunter2"):
            line = self.line({"backend": address}, {})
            self.assertNotIn("ter2", line, address)
            self.assertIn("://", line)

    def test_a_refused_key_is_not_shown(self) -> None:
        line = self.line({}, {"BLOCKOPS_BACKEND_KEY": "sk-very secret"})
        self.assertNotIn("secret", line.replace("BLOCKOPS_BACKEND_KEY", ""))
        self.assertIn("BLOCKOPS_BACKEND_KEY", line)


class KeyFileTests(SynchronousTestCase):
    """Secrets in files, as systemd's LoadCredential and containers hand them over."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()
        self.path.write_text("sk-from-file\n")

    def test_named_by_the_environment(self) -> None:
        settings = resolve({}, {"BLOCKOPS_BACKEND_KEY_FILE": str(self.path)})
        self.assertEqual(settings.backend_key, "sk-from-file")

    def test_named_by_the_file(self) -> None:
        settings = resolve({}, {}, File("f", {"backend-key-file": str(self.path)}))
        self.assertEqual(settings.backend_key, "sk-from-file")

    def test_the_key_itself_is_stronger_and_the_environment_stronger_than_the_file(self) -> None:
        environ = {"BLOCKOPS_BACKEND_KEY_FILE": str(self.path)}
        file = File("f", {"backend-key": "sk-toml"})
        self.assertEqual(resolve({}, environ, file).backend_key, "sk-from-file")
        environ["BLOCKOPS_BACKEND_KEY"] = "sk-direct"
        self.assertEqual(resolve({}, environ, file).backend_key, "sk-direct")

    def test_a_file_that_is_not_there_stops_the_start(self) -> None:
        error = self.assertRaises(
            SettingError, resolve, {}, {"BLOCKOPS_BACKEND_KEY_FILE": "/nowhere/key"}
        )
        self.assertIn("BLOCKOPS_BACKEND_KEY_FILE", str(error))
        self.assertIn("No such file", str(error))

    def test_a_wrong_file_is_refused_without_showing_it(self) -> None:
        for content in (b"\xff\xfe", b"line one\nline two", b"", b"x" * 20_000 + b"\n y"):
            self.path.write_bytes(content)
            error = self.assertRaises(
                SettingError, resolve, {}, {"BLOCKOPS_BACKEND_KEY_FILE": str(self.path)}
            )
            self.assertNotIn("line one", str(error))

    def test_no_path(self) -> None:
        self.assertRaises(SettingError, resolve, {}, {}, File("f", {"backend-key-file": 3}))


class AuthorityTests(SynchronousTestCase):
    """`backend_ca`, whose file is looked at before the start."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()
        self.given = {"backend_ca": str(self.path), "backend": "https://llm.lan"}

    def test_accepted(self) -> None:
        self.path.write_text("-----BEGIN CERTIFICATE-----\n")
        self.assertEqual(resolve(self.given, {}).backend_ca, self.path)

    def test_missing(self) -> None:
        error = self.assertRaises(SettingError, resolve, self.given, {})
        self.assertIn("No such file", str(error))

    def test_no_certificate(self) -> None:
        self.path.write_text("-----BEGIN PRIVATE KEY-----\n")
        error = self.assertRaises(SettingError, resolve, self.given, {})
        self.assertIn("PEM", str(error))

    def test_useless_without_https(self) -> None:
        error = self.assertRaises(SettingError, resolve, {"backend_ca": "x"}, {})
        self.assertIn("https", str(error))


class FileTests(SynchronousTestCase):
    """The TOML file."""

    def read(self, text: str | bytes) -> File:
        self.path = self.mktemp()
        Path(self.path).write_bytes(text.encode() if isinstance(text, str) else text)
        return read_file(self.path)

    def refused(self, text: str | bytes) -> str:
        line = str(self.assertRaises(SettingError, self.read, text))
        self.assertEqual(len(line.splitlines()), 1)
        self.assertIn(self.path, line)
        return line

    def test_values_keep_their_types(self) -> None:
        file = self.read(
            "port = 9000\nheartbeat = 2.5\nheartbeat-json = true\nmax_body = '1M'\n"
            "listen = ['tcp:1', 'unix:/a b']\nlog-file = false\nmodel-name = 'Qwen'\n"
        )
        settings = resolve({}, {}, file)
        self.assertEqual(settings.port, 9000)
        self.assertEqual(settings.heartbeat, 2.5)
        self.assertEqual(repr(settings.heartbeat_json), "True")
        self.assertEqual(settings.max_body, 1 << 20)
        self.assertEqual(settings.listen, ("tcp:1", "unix:/a b"))
        self.assertIsNone(settings.log_file)
        self.assertEqual(settings.model_name, "Qwen")

    def test_empty(self) -> None:
        self.assertEqual(resolve({}, {}, self.read("")), Settings())

    def test_unknown_keys_stop_the_start_and_get_a_hint(self) -> None:
        self.assertIn("did you mean heartbeat?", self.refused("heartbeet = 1"))
        self.assertNotIn("did you mean", self.refused("zzzzzz = 1"))
        self.refused("[backend]\nurl = 'x'\n[zebra]\n")

    def test_a_table_is_no_value(self) -> None:
        file = self.read("[backend]\nurl = 'x'\n")
        self.assertRaises(SettingError, resolve, {}, {}, file)

    def test_twice_by_two_spellings(self) -> None:
        self.assertIn("twice", self.refused("max-body = 1024\nmax_body = 2048"))

    def test_broken(self) -> None:
        for text in ("port 9000", "port = 1\nport = 2", b"\xff", "a = "):
            self.assertIn("no TOML", self.refused(text))

    def test_missing(self) -> None:
        error = self.assertRaises(SettingError, read_file, "/nowhere/config.toml")
        self.assertIn("/nowhere/config.toml", str(error))

    def test_a_folder(self) -> None:
        self.assertRaises(SettingError, read_file, "/")

    def test_wrong_types(self) -> None:
        for key, value in (
            ("port", True),
            ("port", 80.0),
            ("port", [80]),
            ("heartbeat", float("nan")),
            ("heartbeat", float("inf")),
            ("heartbeat", True),
            ("heartbeat-json", "si"),
            ("heartbeat-json", 2),
            ("heartbeat-json", 1.0),
            ("max-body", 1.5),
            ("max-body", True),
            ("listen", [1]),
            ("listen", [""]),
            ("listen", 5),
            ("backend", 5),
            ("interface", 5),
            ("model-name", 5),
            ("log-file", True),
            ("log-file", 5),
            ("reasoning", ["keep"]),
        ):
            error = self.assertRaises(SettingError, resolve, {}, {}, File("f", {key: value}))
            self.assertIn(f"{key} in f", str(error))


class BackendTests(SynchronousTestCase):
    """Addresses of backends."""

    def test_accepted(self) -> None:
        for given_, used in (
            ("http://127.0.0.1:8082", "http://127.0.0.1:8082"),
            ("http://127.0.0.1:8082/", "http://127.0.0.1:8082"),
            ("http://127.0.0.1:8082/v1", "http://127.0.0.1:8082"),
            ("http://127.0.0.1:8082/v1/", "http://127.0.0.1:8082"),
            ("HTTPS://llm.lan", "https://llm.lan"),
            ("https://llm.lan/serving/v1", "https://llm.lan/serving"),
            ("https://llm.lan/v1/models/qwen", "https://llm.lan/v1/models/qwen"),
            ("http://llm.lan/dev1", "http://llm.lan/dev1"),
            ("http://[::1]:8082/v1", "http://[::1]:8082"),
            ("demo", "demo"),
        ):
            self.assertEqual(read(kinds.BACKEND, given_), used)

    def test_refused(self) -> None:
        for text in (
            "",
            "127.0.0.1:8082",
            "localhost",
            "ftp://host",
            "http://",
            "http:///v1",
            "http://:80",
            "http://host:99999",
            "http://host:0",
            "http://host:port",
            "http://[::1",
            "http://me@host",
            "http://host?x=1",
            "http://host/?",
            "http://host/#top",
            "http://ho st",
            "http://host\n",
            "http://hóst",
            "Demo",
        ):
            self.assertRaises(Refused, read, kinds.BACKEND, text)


class KindTests(SynchronousTestCase):
    """Numbers, sizes, spans of time and the rest, at their edges."""

    def test_short_names(self) -> None:
        for value, names in (
            ("q=Qwen/Qwen3 l=x=y", {"q": "Qwen/Qwen3", "l": "x=y"}),
            (("q=Qwen 3 8B", " l = x "), {"q": "Qwen 3 8B", "l": "x"}),
            ({"q": "Qwen 3"}, {"q": "Qwen 3"}),
            ({}, {}),
        ):
            self.assertEqual(kinds.NAMES.read(value), names)
        self.assertEqual(kinds.NAMES.show({"q": "a", "l": "b"}), "q=a l=b")
        wrong: list[object] = ["q", "=x", "q=", ["q=a", "q=b"], {"q": 7}, {7: "q"}, 7, "a=b b=c"]
        for bad in wrong:
            self.assertRaises(Refused, kinds.NAMES.read, bad)

    def test_sizes(self) -> None:
        kind = kinds.size(0)
        for text, number in (
            ("0", 0),
            ("64k", 65536),
            ("64K", 65536),
            ("64KiB", 65536),
            ("64kib", 65536),
            ("10M", 10 << 20),
            ("1GiB", 1 << 30),
        ):
            self.assertEqual(kind.read(text), number)
        for text in ("", "k", "1.5M", "1 M", "10MB", "10b", "-1", "+1", "1_000", "٣", "2000G"):
            self.assertRaises(Refused, read, kind, text)

    def test_durations(self) -> None:
        kind = kinds.duration(0)
        for text, seconds in (
            ("0", 0.0),
            ("10", 10.0),
            ("1.5", 1.5),
            (".5", 0.5),
            ("250ms", 0.25),
            ("10s", 10.0),
            ("10 s", 10.0),
            ("5m", 300.0),
            ("2h", 7200.0),
            ("30d", 30 * 86400.0),
        ):
            self.assertEqual(kind.read(text), seconds)
        for text in ("", "s", "-1", "+1", "1e3", "inf", "nan", "1_0", "1.", "1M", "٣", "31d"):
            self.assertRaises(Refused, read, kind, text)

    def test_numbers(self) -> None:
        kind = kinds.whole(0, 100)
        for text in ("", " 1", "1 ", "+1", "-1", "1.0", "1_0", "0x1", "٣", "101", "9" * 5000):
            self.assertRaises(Refused, read, kind, text)
        self.assertEqual([kind.read(text) for text in ("0", "007", "100")], [0, 7, 100])

    def test_addresses(self) -> None:
        self.assertEqual(read(kinds.ADDRESS, "localhost"), "127.0.0.1")
        for text in ("", "127.1", "256.0.0.1", "::g", "[::1]", "host", "127.0.0.1:80"):
            self.assertRaises(Refused, read, kinds.ADDRESS, text)

    def test_log_file(self) -> None:
        for off in ("", "off", False):
            self.assertIsNone(read(kinds.FILE_OR_OFF, off))
        self.assertEqual(read(kinds.FILE_OR_OFF, "~/x.log"), Path("~/x.log").expanduser())

    def test_key(self) -> None:
        self.assertEqual(read(kinds.KEY, " sk-x\n"), "sk-x")
        for text in ("", " ", "a b", "a\nb", "clé", "a\0"):
            self.assertRaises(Refused, read, kinds.KEY, text)

    @given(st.integers(min_value=0, max_value=1 << 40))
    def test_shown_sizes_are_read_back(self, number: int) -> None:
        self.assertEqual(kinds.size(0).read(kinds.show_size(number)), number)

    @given(st.text() | st.integers() | st.floats() | st.none() | st.lists(st.text()))
    def test_whatever_is_given_is_read_or_refused(self, value: object) -> None:
        for kind in {each.kind for each in TABLE}:
            with contextlib.suppress(Refused):
                kind.read(value)

    def test_kinds_of_words_say_all_of_them(self) -> None:
        kind = kinds.choice("a", "b", "c")
        self.assertEqual(kind.accepts, "a, b or c")
        self.assertEqual(kind.metavar, "a|b|c")


class ReadmeTests(SynchronousTestCase):
    """The README's table of settings is this table."""

    def test_every_setting_stands_there_with_its_names_its_default_and_its_help(self) -> None:
        readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
        section = readme.partition("\n## Settings\n")[2].partition("\n## ")[0]
        rows = [each.split(" | ") for each in section.splitlines() if each.startswith("| `")]
        self.assertEqual(len(rows), len(TABLE))
        for setting, (option, environ, default, text) in zip(TABLE, rows, strict=True):
            name = f"`{setting.option}`" if setting.secret else f"`--{setting.option}`"
            self.assertIn(name, option)
            self.assertIn(f"`{setting.environ}`", environ)
            self.assertEqual(default, setting.shown)
            self.assertEqual(text.removesuffix(" |").replace("`", ""), setting.help)
