"""How settings are read from their sources, precedence, and error messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from blockops.settings.sources import ConfigFile, SettingError, read_config, resolve
from blockops.settings.table import Settings


class PrecedenceTests(SynchronousTestCase):
    """Command line over environment over file over default."""

    file = ConfigFile("f.toml", {"port": 3, "backend-key": "file-key"})

    def test_order(self) -> None:
        self.assertEqual(resolve({}, {}).port, 8080)
        self.assertEqual(resolve({}, {}, self.file).port, 3)
        self.assertEqual(resolve({}, {"PORT": "2"}, self.file).port, 2)
        self.assertEqual(resolve({"port": "1"}, {"PORT": "2"}, self.file).port, 1)

    def test_a_source_of_lower_precedence_is_not_parsed(self) -> None:
        self.assertEqual(resolve({"port": "1"}, {"PORT": "junk"}).port, 1)

    def test_the_command_line_can_disable_a_flag_of_the_environment(self) -> None:
        on = {"BLOCKOPS_HEARTBEAT_JSON": "1"}
        self.assertTrue(resolve({}, on).heartbeat_json)
        self.assertFalse(resolve({"heartbeat_json": False}, on).heartbeat_json)

    def test_an_empty_variable_is_unset(self) -> None:
        self.assertEqual(resolve({}, {"PORT": ""}, self.file).port, 3)
        self.assertEqual(resolve({}, {"BLOCKOPS_BACKEND_KEY": ""}).backend_key, None)

    def test_an_empty_variable_is_a_value_if_the_type_allows_it(self) -> None:
        file = ConfigFile("f", {"log-file": "/x", "model-name": "M"})
        settings = resolve({}, {"BLOCKOPS_LOG_FILE": "", "MODEL_NAME": ""}, file)
        self.assertEqual((settings.log_file, settings.model_name), (None, ""))

    def test_an_empty_option_is_invalid(self) -> None:
        self.assertRaises(SettingError, resolve, {"port": ""}, {})

    def test_endpoints_on_the_command_line_keep_spaces(self) -> None:
        settings = resolve({"listen": ("unix:/a b", "tcp:1")}, {})
        self.assertEqual(settings.listen, ("unix:/a b", "tcp:1"))


class MessageTests(SynchronousTestCase):
    """Messages are one line for any value, and contain no secret."""

    def line(self, *args: Any) -> str:
        return str(self.assertRaises(SettingError, resolve, *args))

    def test_the_source_is_named_as_written(self) -> None:
        accepted = "'zzz' is not accepted; give a whole number from 0 to 65535"
        self.assertEqual(self.line({"port": "zzz"}, {}), f"--port: {accepted}")
        self.assertEqual(self.line({}, {"PORT": "zzz"}), f"PORT: {accepted}")
        self.assertEqual(
            self.line({}, {}, ConfigFile("/a/b.toml", {"port": "zzz"})),
            f"port in /a/b.toml: {accepted}",
        )

    def test_control_characters_are_escaped(self) -> None:
        line = self.line({}, {"PORT": "1\n2\r\x1b[31m\u2028\x85"})
        self.assertEqual(len(line.splitlines()), 1)
        self.assertNotIn("\x1b", line)

    def test_a_long_value_is_truncated(self) -> None:
        self.assertLess(len(self.line({"port": "9" * 100_000}, {})), 320)

    def test_a_password_in_a_url_is_hidden(self) -> None:
        line = self.line({"backend": "http://me:hunter2@host"}, {})
        self.assertNotIn("hunter2", line)
        self.assertIn("without a user", line)

    def test_other_secrets_in_a_url_are_hidden(self) -> None:
        for address in ("ftp://me:hun@ter2@host", "ftp://host/?key=hunter2", "http://h/?k=hunter2"):
            line = self.line({"backend": address}, {})
            self.assertNotIn("ter2", line, address)
            self.assertIn("://", line)

    def test_an_invalid_key_is_hidden(self) -> None:
        line = self.line({}, {"BLOCKOPS_BACKEND_KEY": "sk-very secret"})
        self.assertNotIn("secret", line.replace("BLOCKOPS_BACKEND_KEY", ""))
        self.assertIn("BLOCKOPS_BACKEND_KEY", line)


class KeyFileTests(SynchronousTestCase):
    """Secrets in files, as from systemd's LoadCredential and containers."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()
        self.path.write_text("sk-from-file\n")

    def test_named_by_the_environment(self) -> None:
        settings = resolve({}, {"BLOCKOPS_BACKEND_KEY_FILE": str(self.path)})
        self.assertEqual(settings.backend_key, "sk-from-file")

    def test_named_by_the_configuration_file(self) -> None:
        settings = resolve({}, {}, ConfigFile("f", {"backend-key-file": str(self.path)}))
        self.assertEqual(settings.backend_key, "sk-from-file")

    def test_precedence(self) -> None:
        environ = {"BLOCKOPS_BACKEND_KEY_FILE": str(self.path)}
        file = ConfigFile("f", {"backend-key": "sk-toml"})
        self.assertEqual(resolve({}, environ, file).backend_key, "sk-from-file")
        environ["BLOCKOPS_BACKEND_KEY"] = "sk-direct"
        self.assertEqual(resolve({}, environ, file).backend_key, "sk-direct")

    def test_missing_file(self) -> None:
        error = self.assertRaises(
            SettingError, resolve, {}, {"BLOCKOPS_BACKEND_KEY_FILE": "/missing/key"}
        )
        self.assertIn("BLOCKOPS_BACKEND_KEY_FILE", str(error))
        self.assertIn("No such file", str(error))

    def test_the_content_of_an_invalid_file_is_hidden(self) -> None:
        for content in (b"\xff\xfe", b"line one\nline two", b"", b"x" * 20_000 + b"\n y"):
            self.path.write_bytes(content)
            error = self.assertRaises(
                SettingError, resolve, {}, {"BLOCKOPS_BACKEND_KEY_FILE": str(self.path)}
            )
            self.assertNotIn("line one", str(error))

    def test_the_home_of_an_unknown_user(self) -> None:
        path = "~no-user-of-this-name/key"
        error = self.assertRaises(SettingError, resolve, {}, {"BLOCKOPS_BACKEND_KEY_FILE": path})
        self.assertEqual(
            str(error),
            f"BLOCKOPS_BACKEND_KEY_FILE: '{path}' cannot be read: No such file or directory",
        )

    def test_what_is_no_path(self) -> None:
        for path in (3, "a\0b"):
            file = ConfigFile("f", {"backend-key-file": path})
            error = self.assertRaises(SettingError, resolve, {}, {}, file)
            self.assertEqual(
                str(error), "backend-key-file in f: not accepted; give the path of a file"
            )


class BackendCaTests(SynchronousTestCase):
    """`backend_ca`, whose file is checked before the start."""

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

    def test_without_https(self) -> None:
        error = self.assertRaises(SettingError, resolve, {"backend_ca": "x"}, {})
        self.assertIn("https", str(error))


class ConfigFileTests(SynchronousTestCase):
    """`read_config`."""

    def read(self, text: str | bytes) -> ConfigFile:
        self.path = self.mktemp()
        Path(self.path).write_bytes(text.encode() if isinstance(text, str) else text)
        return read_config(self.path)

    def error_for(self, text: str | bytes) -> str:
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

    def test_unknown_keys_are_errors_with_a_hint(self) -> None:
        self.assertIn("did you mean heartbeat?", self.error_for("heartbeet = 1"))
        self.assertNotIn("did you mean", self.error_for("zzzzzz = 1"))
        self.error_for("[backend]\nurl = 'x'\n[zebra]\n")

    def test_a_table_is_not_a_value(self) -> None:
        file = self.read("[backend]\nurl = 'x'\n")
        self.assertRaises(SettingError, resolve, {}, {}, file)

    def test_a_key_in_two_spellings(self) -> None:
        self.assertIn("twice", self.error_for("max-body = 1024\nmax_body = 2048"))

    def test_invalid_toml(self) -> None:
        for text in ("port 9000", "port = 1\nport = 2", b"\xff", "a = "):
            self.assertIn("not valid TOML", self.error_for(text))

    def test_missing(self) -> None:
        error = self.assertRaises(SettingError, read_config, "/missing/config.toml")
        self.assertIn("/missing/config.toml", str(error))

    def test_a_directory(self) -> None:
        self.assertRaises(SettingError, read_config, "/")

    def test_wrong_types(self) -> None:
        for key, value in (
            ("port", True),
            ("port", 80.0),
            ("port", [80]),
            ("heartbeat", float("nan")),
            ("heartbeat", float("inf")),
            ("heartbeat", 10**400),
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
            error = self.assertRaises(SettingError, resolve, {}, {}, ConfigFile("f", {key: value}))
            self.assertIn(f"{key} in f", str(error))
