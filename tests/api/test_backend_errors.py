"""Errors of every origin reach the client in the format of the OpenAI API."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockops.api.backend_errors import extract_message, to_error_event, to_error_response
from blockops.errors import ApiError


def convert(body: bytes, status: int = 400, content_type: str = "") -> dict[str, Any]:
    """Return the error object of the client's response; the status is unchanged."""
    client_status, out = to_error_response(status, body, content_type)
    assert client_status == status
    error: dict[str, Any] = json.loads(out)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


class ApiErrorTests(SynchronousTestCase):
    def test_body(self) -> None:
        error = ApiError(400, "no", param="n", code="c", retry_after=3)
        self.assertEqual(
            json.loads(error.body()),
            {
                "error": {
                    "message": "no",
                    "type": "invalid_request_error",
                    "param": "n",
                    "code": "c",
                }
            },
        )
        self.assertEqual((error.status, error.retry_after, str(error)), (400, 3, "no"))

    def test_unpaired_surrogate(self) -> None:
        self.assertIn("\ufffd", json.loads(ApiError(400, "a\ud83d").body())["error"]["message"])


class ErrorResponseTests(SynchronousTestCase):
    def test_error_object_passes_unchanged(self) -> None:
        for body in (
            b'{"error": {"message": "x", "code": 400, "n_ctx": 1.50}}',
            b' {"error":{"code":1}, "more": NaN}\n',
            b'{"error":{"message":"\\ud83d"}}',
        ):
            self.assertEqual(to_error_response(418, body, "application/json"), (418, body))

    def test_invalid_json_is_repaired(self) -> None:
        for body in (b'{"error":{"message":"a\xc3b"}}', b'{"error":{"message":"a\0b"}}'):
            _, out = to_error_response(418, body, "application/json")
            message = json.loads(out)["error"]["message"]
            self.assertEqual((message[0], message[-1]), ("a", "b"))

    def test_texts(self) -> None:
        cases = {
            b"Internal Server Error": "Internal Server Error",
            b' {"error": "text"} ': "text",
            b'{"detail": "Not Found"}': "Not Found",
            b'{"message": "m"}': "m",
            b'{"error": {}, "message": "m"}': "m",
            b'{"detail": {"error": {"message": "deep"}}}': "deep",
            b'{"detail":[{"loc":["a","n"],"msg":"bad"},{"loc":[1],"msg":"b"}]}': "a.n: bad; 1: b",
            b'{"detail":[{"msg":"bad"},{"loc":3,"msg":{"a":1}}]}': 'bad; {"a":1}',
            b'{"detail":[{"msg":""}]}': '{"msg":""}',
            b'["a", 1]': '["a",1]',
            b'"text"': "text",
            b"two\r\n lines \t": "two lines",
            b"caf\xe9": "caf\ufffd",
            b'{"code": 7}': '{"code":7}',
            b"503": "503",
        }
        for body, message in cases.items():
            self.assertEqual(convert(body)["message"], message)
            self.assertEqual(extract_message(body), message)

    def test_no_message(self) -> None:
        for body in (b"", b" \n", b"{}", b"null", b"[]", b"<br>", b'""'):
            self.assertIn("status 500", convert(body, 500)["message"])

    def test_html(self) -> None:
        page = (
            b"<!DOCTYPE html><html><head><title>502</title><style>p{}</style></head>\n"
            b"<body><h1>502 Bad&nbsp;Gateway</h1><script>x < 1</script><p>a &lt; b</p></body>"
        )
        self.assertEqual(convert(page, 502)["message"], "502 Bad Gateway a < b")
        self.assertEqual(convert(b"Oh <b>no</b>", 502, "text/HTML; charset=x")["message"], "Oh no")
        self.assertEqual(convert(b"1 <b> 2", 502, "text/plain")["message"], "1 <b> 2")
        self.assertEqual(convert(b"</style><p>x", 502)["message"], "x")

    def test_length_is_bounded(self) -> None:
        for body in (
            b"x" * 1_000_000,
            b"<p>" + b"y " * 1_000_000,
            b'{"error":"%s"}' % (b"z" * 100_000),
        ):
            message = convert(body)["message"]
            self.assertEqual(len(message), 2000)
            self.assertTrue(message.endswith("..."))

    def test_depth_is_bounded(self) -> None:
        for body in (
            b"[" * 100_000,
            b'{"error":' * 100_000,
            b'{"detail":' * 400 + b"1" + b"}" * 400,
        ):
            self.assertTrue(convert(body)["message"])

    def test_types(self) -> None:
        for status, error_type in {
            400: "invalid_request_error",
            401: "authentication_error",
            403: "permission_error",
            404: "not_found_error",
            418: "invalid_request_error",
            429: "rate_limit_error",
            500: "server_error",
            503: "server_error",
        }.items():
            self.assertEqual(convert(b"x", status)["type"], error_type)

    @given(st.binary(), st.sampled_from(["", "text/html"]))
    def test_anything(self, body: bytes, content_type: str) -> None:
        _, out = to_error_response(500, body, content_type)
        self.assertTrue(json.loads(out)["error"])


class ErrorEventTests(SynchronousTestCase):
    def test_error_object(self) -> None:
        message, out = to_error_event(b'{"error": {"message": "m", "n": 1.50}, "other": 1}')
        self.assertEqual((message, out), ("m", b'{"error":{"message":"m","n":1.50}}'))

    def test_raw_line_ends(self) -> None:
        message, out = to_error_event(b'{"error": {"message": "a\nb"}}')
        self.assertEqual((message, out), ("a b", b'{"error":{"message":"a\\nb"}}'))

    def test_text(self) -> None:
        for data in (b'{"error": "m"}', b"m", b'{"message":"m"}'):
            message, out = to_error_event(data)
            self.assertEqual(message, "m")
            self.assertEqual(
                json.loads(out)["error"],
                {"message": "m", "type": "server_error", "param": None, "code": "backend_error"},
            )

    def test_no_message(self) -> None:
        message, out = to_error_event(b"")
        self.assertEqual(json.loads(out)["error"]["message"], message)
        self.assertIn("log", message)
