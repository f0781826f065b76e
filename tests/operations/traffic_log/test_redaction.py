"""No secret is kept, in whatever it stands and wherever it was cut."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.operations.traffic_log.redaction import HIDDEN, shown_headers, without_secrets

SECRET = "Zq7_hidden~Value"

FIELDS = (
    "api_key",
    "apiKey",
    "API-Key",
    "x-api-key",
    "openai_api_key",
    "Authorization",
    "proxy-authorization",
    "access_token",
    "refreshToken",
    "auth token",
    "client_secret",
    "secret",
    "aws_secret_access_key".removeprefix("aws_"),
    "private_key",
    "Cookie",
    "set-cookie",
    "password",
    "passwd",
    "credentials",
)


class FieldTests(SynchronousTestCase):
    def test_every_name(self):
        for name in FIELDS:
            text = without_secrets(json.dumps({"a": 1, name: SECRET, "z": "kept"}))
            self.assertEqual(json.loads(text), {"a": 1, name: HIDDEN, "z": "kept"})

    def test_every_shape_of_value(self):
        for value in (
            SECRET,
            f'{SECRET}" and \\ {SECRET}',
            [SECRET, SECRET],
            {"x": SECRET},
            123456,
        ):
            text = without_secrets(json.dumps({"password": value, "z": "kept"}))
            self.assertNotIn("Zq7", text)
            self.assertNotIn("123456", text)
            self.assertEqual(json.loads(text)["z"], "kept")

    def test_json_in_json_in_json(self):
        text = json.dumps({"api_key": SECRET, "z": "kept"})
        for _ in range(3):
            text = json.dumps({"content": f"Use {text} now", "more": 1})
            hidden = without_secrets(text)
            self.assertNotIn("Zq7", hidden)
            self.assertIn("kept", hidden)
            self.assertEqual(json.loads(hidden)["more"], 1)

    @given(st.integers(min_value=0, max_value=2), st.sampled_from(FIELDS), st.data())
    def test_cut_anywhere(self, depth, name, data):
        text = json.dumps({"a": "b", name: SECRET, "z": "kept"})
        for _ in range(depth):
            text = json.dumps({"content": text})
        cut = data.draw(st.integers(min_value=0, max_value=len(text)))
        self.assertNotIn("Zq", without_secrets(text[:cut]))

    def test_python_and_white_space(self):
        self.assertNotIn("Zq7", without_secrets(f"{{'api_key' : '{SECRET}'}}"))
        self.assertNotIn("Zq7", without_secrets(f'{{"api_key"\n:\t"{SECRET}"}}'))

    def test_what_is_no_secret_stays(self):
        for text in (
            '{"token": "Hello", "logprob": -0.1, "bytes": [72]}',
            '{"max_tokens": 5, "completion_tokens": 7, "stop_token": "x"}',
            '{"api_key": null, "password": true}',
            "Write a function that checks a password: it must be long.",
            '{"description": "the secret of success", "properties": {"key": {"type": "string"}}}',
            '{"name": "ask-for-it", "task-list": "sk-short"}',
        ):
            self.assertEqual(without_secrets(text), text)

    def test_keys_by_their_looks(self):
        for text in (
            f"curl -H 'Authorization: Bearer {SECRET}'",
            f"authorization: basic {SECRET}",
            f"key sk-{SECRET} here",
            f"hf_{SECRET}",
        ):
            self.assertNotIn("Zq7", without_secrets(text))

    def test_known_secrets_wherever_they_stand(self):
        self.assertEqual(without_secrets(f"a{SECRET}b", [SECRET]), f"a{HIDDEN}b")

    def test_what_was_cut_off(self):
        for size in range(4, 15):
            text = "key is " + "sesame-key-1234"[:size]
            self.assertEqual(without_secrets(text, ["sesame-key-1234"]), "key is ***", size)
        for text in ("Bearer abcdefg", "x sk-a", "Basic Zm9"):
            self.assertTrue(without_secrets(text).endswith("***"), text)
        self.assertEqual(without_secrets("it is ses", ["sesame-key-1234"]), "it is ses")

    def test_long_text_takes_its_length_and_not_its_square(self):
        """Where the search began anew at each character this would not end within the hour."""
        for piece in ('\\"', '"api_key', '"api_key":"', '"password" : [', "\\", "Bearer ", '"a'):
            text = "secret sk-" + piece * (300_000 // len(piece))
            self.assertTrue(without_secrets(text).startswith("secret"))


class HeaderTests(SynchronousTestCase):
    def test_only_harmless_ones(self):
        headers = {
            "Authorization": "Bearer x",
            "Cookie": "x",
            "X-Api-Key": "x",
            "Api-Key": "x",
            "X-Unheard-Of": "x",
            "User-Agent": "curl/8",
            "Content-Type": "application/json",
        }
        self.assertEqual(
            shown_headers(headers), {"user-agent": "curl/8", "content-type": "application/json"}
        )
