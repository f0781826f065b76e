"""
Request smuggling: the backend gets exactly the intended request, or nothing.

The attempts are requests that two servers would read differently, headers that would become two,
and paths and names that would lead to another destination.

Each attempt is sent over a raw connection, in one piece and byte by byte. Every connection that
blockops opens to the backend is accepted and read, and gets a response.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.world import DONE, Client, World, chat, chunk

#: A request that the client did not intend, and that a backend would accept.
SMUGGLED = b"DELETE /v1/poison HTTP/1.1\r\nHost: evil\r\n\r\n"
#: A route that streams the body to the backend, and one that buffers it.
TARGETS = (b"/v1/embeddings", b"/v1/chat/completions")
BODY = json.dumps(chat(stream=False)).encode()
RESPONSE = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}}]}


class BackendRequest:
    """One request, as the backend received it."""

    def __init__(self, raw: bytes) -> None:
        head, _, rest = raw.partition(b"\r\n\r\n")
        self.line, *lines = head.split(b"\r\n")
        self.names = [line.partition(b":")[0].lower() for line in lines]
        self.headers = dict(
            zip(self.names, (line.partition(b": ")[2] for line in lines), strict=True)
        )
        self.body = rest
        self.raw = raw

    def data(self) -> bytes:
        """Return the body; AssertionError if its length differs from the headers."""
        if b"transfer-encoding" in self.headers:
            assert self.headers[b"transfer-encoding"] == b"chunked"
            assert b"content-length" not in self.headers
            return _dechunked(self.body)
        assert len(self.body) == int(self.headers.get(b"content-length", b"0")), self.raw
        return self.body


def _dechunked(body: bytes) -> bytes:
    """Return the data of the chunks; AssertionError if anything follows the last one."""
    pieces: list[bytes] = []
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            assert body == b"\r\n", body
            return b"".join(pieces)
        pieces.append(body[:length])
        assert body[length : length + 2] == b"\r\n"
        body = body[length + 2 :]


class Case(SynchronousTestCase):
    world: World
    client: Client

    def send_pieces(self, *sent: bytes, **settings: Any) -> list[BackendRequest]:
        """Return the requests that the backend gets when a client sends these pieces."""
        self.world = World(**settings)
        self.client = self.world.client()
        for piece in sent:
            self.client.send(piece)
            self.world.reactor.advance(0)
        found: list[BackendRequest] = []
        opened = 0
        while opened < self.world.connection_attempts():
            backend = self.world.backend(opened)
            opened += 1
            # Some connections are cancelled before they are established.
            if raw := backend.request():
                found.append(BackendRequest(raw))
            backend.respond(RESPONSE)
        return found

    def send_both_ways(self, sent: bytes, **settings: Any) -> list[BackendRequest]:
        """Return them for `sent` in one piece; AssertionError if they differ byte by byte."""
        bytewise = self.send_pieces(*(bytes([each]) for each in sent), **settings)
        statuses = self.statuses()
        whole = self.send_pieces(sent, **settings)
        lines = [(each.line, each.data()) for each in whole]
        self.assertEqual([(each.line, each.data()) for each in bytewise], lines)
        self.assertEqual(statuses, self.statuses())
        return whole

    def statuses(self) -> list[bytes]:
        """Return the statuses of the client's responses."""
        return re.findall(rb"HTTP/1\.1 (\d\d\d) ", self.client.received())

    def assert_nothing(self, sent: bytes, *statuses: int, **settings: Any) -> None:
        """Assert that the backend gets no request, and that the connection is closed."""
        self.assertEqual(self.send_both_ways(sent, **settings), [], sent)
        self.assertIn(self.client.status(), statuses or (400,), sent)
        self.assertEqual(len(self.statuses()), 1, sent)
        self.world.reactor.advance(0)
        self.client.send(SMUGGLED)
        self.assertEqual(self.world.connection_attempts(), 0, sent)


def post(target: bytes, *headers: bytes, body: bytes = b"") -> bytes:
    lines = [b"POST %s HTTP/1.1" % target, b"Host: blockops", *headers]
    return b"\r\n".join([*lines, b"", body])


class BodyLengths(Case):
    """The length of a body is stated once and clearly, or the request is rejected."""

    def test_ambiguous_lengths(self) -> None:
        chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
        length = b"Content-Length: %d" % len(BODY)
        for headers in (
            (length, b"Transfer-Encoding: chunked"),
            (b"Transfer-Encoding: chunked", length),
            (b"Transfer-Encoding: chunked", b"Content-Length: 0"),
            (b"Content-Length: 0", b"transfer-encoding:\tchunked"),
            (length, b"Content-Length: 0"),
            (length, length),
            (length, b"content-length: %d" % (len(BODY) + 1)),
            (b"Content-Length: %d, %d" % (len(BODY), len(BODY)),),
            (b"Content-Length: %d,0" % len(BODY),),
            (b"Content-Length: +%d" % len(BODY),),
            (b"Content-Length: -1",),
            (b"Content-Length: 0x%x" % len(BODY),),
            (b"Content-Length: 1_0",),
            (b"Content-Length: \xb2",),
            (b"Content-Length:",),
            (b"Content-Length: 1 0",),
            (b"Content-Length: 5\x00",),
            (b"Content-Length : %d" % len(BODY),),
            (b"Content-Length\t: %d" % len(BODY),),
            (b" Content-Length: %d" % len(BODY),),
            (b"X: 1", b" Content-Length: %d" % len(BODY)),
            (b"X: 1", b"\tTransfer-Encoding: chunked"),
            (b"Transfer-Encoding: chunked", b" , identity"),
            (b"Transfer-Encoding: chunked, chunked",),
            (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
            (b"Transfer-Encoding: identity, chunked",),
            (b"Transfer-Encoding: chunked, identity",),
            (b"Transfer-Encoding: gzip, chunked",),
            (b"Transfer-Encoding: xchunked",),
            (b"Transfer-Encoding: chunked;q=1",),
            (b'Transfer-Encoding: "chunked"',),
            (b"Transfer-Encoding: chunke\xc4",),
            (b"Transfer-Encoding: \x0bchunked",),
            (b"Transfer-Encoding: \x00chunked",),
            (b"Transfer-Encoding:",),
            (b"Transfer-Encoding : chunked",),
            (b"Transfer\x00-Encoding: chunked",),
            (b"Transfer-Encoding\x0b: chunked",),
            (b"X: y\rTransfer-Encoding: chunked",),
            (b"X: y\nTransfer-Encoding: chunked",),
            (b"X: y\n\nPOST / HTTP/1.1",),
            (b"X: y\r\r\nTransfer-Encoding: chunked",),
        ):
            for target in TARGETS:
                for body in (BODY, chunks):
                    self.assert_nothing(post(target, *headers, body=body + SMUGGLED))

    def test_headers_with_underscores(self) -> None:
        """Some proxies replace underscores by dashes: here the header has no meaning."""
        (one,) = self.send_both_ways(
            post(TARGETS[0], b"Content_Length: 99", b"Transfer_Encoding: chunked")
        )
        self.assertEqual(one.data(), b"")

    def test_headers_with_underscores_are_not_forwarded(self) -> None:
        dropped = (
            b"Content_Length",
            b"api_key",
            b"X_API-Key",
            b"X_Forwarded_For",
            b"Proxy_Connection",
        )
        (one,) = self.send_both_ways(
            post(TARGETS[0], *(name + b": 9" for name in (*dropped, b"My_Own")))
        )
        self.assertIn(b"my_own", one.names)
        for name in dropped:
            self.assertNotIn(name.lower(), one.names)

    def test_clear_lengths(self) -> None:
        for headers, body in (
            ((b"Content-Length: %d" % len(BODY),), BODY),
            ((b"content-length:%d\t" % len(BODY),), BODY),
            ((b"Content-Length: 000%d" % len(BODY),), BODY),
            ((b"TRANSFER-ENCODING: Chunked",), b"%X\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)),
        ):
            for target in TARGETS:
                (one,) = self.send_both_ways(post(target, *headers, body=body))
                self.assertEqual(json.loads(one.data()), json.loads(BODY))
                self.assertEqual(one.line, b"POST %s HTTP/1.1" % target)
                for name in (b"content-length", b"transfer-encoding", b"host"):
                    self.assertLessEqual(one.names.count(name), 1)

    def test_chunked_before_http_1_1(self) -> None:
        sent = post(TARGETS[0], b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED)
        self.assert_nothing(sent.replace(b"HTTP/1.1", b"HTTP/1.0", 1))

    def test_a_get_with_a_body(self) -> None:
        sent = b"GET /v1/x HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED)
        (one,) = self.send_both_ways(sent + SMUGGLED)
        self.assertEqual(one.data(), SMUGGLED)
        self.assertEqual(len(self.statuses()), 1)


class Chunks(Case):
    def assert_rejected(self, body: bytes) -> None:
        for target in TARGETS:
            sent = post(target, b"Transfer-Encoding: chunked", body=body + SMUGGLED)
            for found in (
                self.send_pieces(sent),
                self.send_pieces(*(bytes([each]) for each in sent)),
            ):
                # The backend has part of a streamed body, which must not have a valid end.
                for one in found:
                    self.assertEqual(target, TARGETS[0])
                    self.assertNotIn(b"\r\n0\r\n\r\n", one.body)
                    self.assertNotIn(b"poison", one.raw)
                self.assertLessEqual(len(found), 1)
                self.world.reactor.advance(0)
                self.assertTrue(self.client.wire.is_write_closed, body)

    def test_invalid_sizes(self) -> None:
        for size in (
            b"",
            b" 3",
            b"\t3",
            b"+3",
            b"-3",
            b"0x3",
            b"3_0",
            b"3g",
            b"\xb3",
            b"1" * 20,
            b"ffffffffffffffffff",
            b"3 ",
            b"3 ;x",
            b"3\x00",
            b"3,3",
        ):
            self.assert_rejected(size + b"\r\nabc\r\n0\r\n\r\n")

    def test_invalid_line_ends(self) -> None:
        for body in (
            b"3\nabc\r\n0\r\n\r\n",
            b"3\rabc\r\n0\r\n\r\n",
            b"3\r\nabc\n0\r\n\r\n",
            b"3\r\nabc0\r\n\r\n",
            b"3\r\nabcd\r\n0\r\n\r\n",
            b"3\r\nabc\r\r\n0\r\n\r\n",
            b"3\n\r\nabc\r\n0\r\n\r\n",
            b"0\n\n",
            b"0\n\r\n",
            b"0\r\n\n",
        ):
            self.assert_rejected(body)

    def test_extensions_with_line_ends_in_them(self) -> None:
        for extension in (b";a\nb", b";a\rb", b';a="x\r\n0\r\n\r\n"', b";\x00", b";\n"):
            self.assert_rejected(b"3" + extension + b"\r\nabc\r\n0\r\n\r\n")

    def test_extensions_are_not_forwarded(self) -> None:
        for extension in (b";a", b";a=b", b';a="b;c"'):
            body = b"2%s\r\n{}\r\n0%s\r\n\r\n" % (extension, extension)
            (one,) = self.send_both_ways(post(TARGETS[0], b"Transfer-Encoding: chunked", body=body))
            self.assertEqual(one.data(), b"{}")
            self.assertNotIn(b";a", one.raw)

    def test_trailers_are_not_forwarded(self) -> None:
        trailers = b"Content-Length: 99\r\nAuthorization: Bearer x\r\nHost: evil\r\n"
        body = b"2\r\n{}\r\n0\r\n%s\r\n" % trailers
        (one,) = self.send_both_ways(post(TARGETS[0], b"Transfer-Encoding: chunked", body=body))
        self.assertEqual(one.data(), b"{}")
        self.assertNotIn(b"evil", one.raw)
        self.assertNotIn(b"uthorization", one.raw)


class RequestLines(Case):
    def test_invalid_request_lines(self) -> None:
        for line in (
            b"get\x00 /v1/models HTTP/1.1",
            b"GET  /v1/models HTTP/1.1",
            b"GET /v1/models  HTTP/1.1",
            b"GET\t/v1/models\tHTTP/1.1",
            b" GET /v1/models HTTP/1.1",
            b"GET /v1/models http/1.1",
            b"GET /v1/models HTTP/1.1 ",
            b"GET /v1/models HTTP/1.1\x00",
            b"GET /v1/models HTTP/1.10",
            b"GET /v1/models HTTP/01.1",
            b"GET /v1/models HTTP/2.0",
            b"GET /v1/models HTTP/0.9",
            b"GET /v1/models",
            b"GET /v1/models XHTTP/1.1",
            b"GET /v1/mo dels HTTP/1.1",
            b"GET /v1/models\x00 HTTP/1.1",
            b"GET /v1/mod\xc3\xa9ls HTTP/1.1",
            b"GET /v1/models\rX HTTP/1.1",
            b"G(T /v1/models HTTP/1.1",
            b"PRI * HTTP/2.0",
            b"GET /v1/models HTTP/1.1\nX: y",
            b"GET /v1/models HTTP/1.1\rX: y",
        ):
            self.assert_nothing(line + b"\r\nHost: b\r\n\r\n" + SMUGGLED)

    def test_bare_line_feeds(self) -> None:
        self.world = World()
        client = self.world.client()
        client.send(b"GET /v1/models HTTP/1.1\nHost: b\n\n" + SMUGGLED.replace(b"\r", b""))
        self.world.pass_time(61)
        self.assertEqual(self.world.connection_attempts(), 0)
        self.assertTrue(client.wire.closed)

    def test_unsupported_methods(self) -> None:
        for method in (b"CONNECT", b"TRACE", b"get", b"PROPFIND", b"X"):
            self.assertEqual(self.send_both_ways(b"%s /v1/models HTTP/1.1\r\n\r\n" % method), [])
            self.assertEqual(self.client.status(), 405)


class FollowingRequests(Case):
    """Bytes after a request are the next request, which is checked separately."""

    def test_two_requests(self) -> None:
        for target in TARGETS:
            one = post(target, b"Content-Length: %d" % len(BODY), body=BODY)
            found = self.send_both_ways(one + one.replace(b"Host: blockops", b"Host: b"))
            self.assertEqual([each.line for each in found], [b"POST %s HTTP/1.1" % target] * 2)
            self.assertEqual(self.client.received().count(b"HTTP/1.1 200"), 2)

    def test_the_second_request_needs_a_key(self) -> None:
        path = Path(self.mktemp())
        path.write_text("alice: sk-one")
        good = post(TARGETS[0], b"Authorization: Bearer sk-one", b"Content-Length: 2", body=b"{}")
        found = self.send_both_ways(good + SMUGGLED, api_keys_file=path)
        self.assertEqual([each.line for each in found], [b"POST /v1/embeddings HTTP/1.1"])
        self.assertIn(b"HTTP/1.1 401", self.client.received())

    def test_nothing_after_an_invalid_request(self) -> None:
        self.assert_nothing(b"nonsense\r\n\r\n" + SMUGGLED)

    def test_nothing_after_a_rejected_body(self) -> None:
        for more in (b"Content-Length: 99999", b"Transfer-Encoding: chunked"):
            self.world = World(cors_origin=("https://a",))
            self.client = self.world.client()
            self.client.send(post(TARGETS[0], b"Origin: https://b", more, body=SMUGGLED))
            self.client.send(SMUGGLED)
            self.world.reactor.advance(0)
            self.assertEqual(len(self.statuses()), 1)
            self.assertEqual(self.world.connection_attempts(), 0)

    def test_a_second_response_of_the_backend(self) -> None:
        """Only the first response of a backend is used."""
        world = World()
        first, second = world.client(), world.client()
        first.get("/v1/a")
        backend = world.backend()
        backend.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n\r\npoison")
        world.reactor.advance(0)
        second.get("/v1/b")
        self.assertEqual(world.connection_attempts(), 2)
        self.assertTrue(first.received().endswith(b"\r\n\r\n{}"))
        self.assertEqual(second.received(), b"")


class Headers(Case):
    """No value of a client becomes another header, neither of the request nor of the response."""

    def test_line_ends_in_values(self) -> None:
        for value in (
            b"a\nX-Evil: 1",
            b"a\rX-Evil: 1",
            b"a\x00",
            b"a\x0bX-Evil: 1",
            b"a\x7f",
            b"\x1b[31m",
        ):
            for name in (
                b"X-Session-Id",
                b"X-Request-Id",
                b"User-Agent",
                b"Authorization",
                b"Host",
            ):
                self.assert_nothing(b"GET /v1/models HTTP/1.1\r\n%s: %s\r\n\r\n" % (name, value))

    def test_invalid_names(self) -> None:
        for name in (b"", b"X Y", b"X\x00", b"X(", b"X\xe9", b'X"', b"[X]", b"X/Y", b"X:"):
            sent = b"GET /v1/models HTTP/1.1\r\n%s: v\r\n\r\n" % name
            if name != b"X:":
                self.assert_nothing(sent)

    def test_encoded_characters_stay_encoded(self) -> None:
        for target in (
            b"/v1/x%0d%0aX-Evil:%201",
            b"/v1/x?a=%0d%0aX-Evil:1",
            b"/v1/x%00",
            b"/v1/%E5%98%8D",
        ):
            (one,) = self.send_both_ways(b"GET %s HTTP/1.1\r\n\r\n" % target)
            self.assertEqual(one.line, b"GET %s HTTP/1.1" % target)
            self.assertNotIn(b"x-evil", one.names)
            self.assertNotIn(b"\r\nX-Evil", self.client.received())

    def test_fields_of_the_body(self) -> None:
        evil = "m\r\nX-Evil: 1\r\n\r\n\u2028\u0000"
        for fields in (
            {"model": evil},
            {"user": evil},
            {"prompt_cache_key": evil},
            {"metadata": {"session_id": evil}},
            {"tools": [{"type": "function", "function": {"name": evil}}]},
            {"messages": [{"role": "user", "content": "/new"}], "model": evil},
        ):
            body = json.dumps(chat(**{"stream": False, **fields})).encode()
            sent = post(TARGETS[1], b"Content-Length: %d" % len(body), body=body)
            for one in self.send_both_ways(sent, notices="header", model_name="Q\u00e9"):
                self.assertNotIn(b"x-evil", one.names)
                one.data()
            self.assertNotIn(b"X-Evil", self.client.received().partition(b"\r\n\r\n")[0])
            self.assertEqual(len(self.statuses()), 1)

    def test_the_model_name_of_the_operator(self) -> None:
        body = json.dumps(chat()).encode()
        sent = post(TARGETS[1], b"Content-Length: %d" % len(body), body=body)
        self.send_pieces(sent, notices="header", model_name="Qwen \u2713 3")
        head = self.client.received().partition(b"\r\n\r\n")[0]
        self.assertNotIn("\u2713".encode(), head)

    def test_headers_of_the_backend(self) -> None:
        """Line ends in the values of the backend's headers are not forwarded."""
        for value in (b"a\nX-Evil: 1", b"a\rX-Evil: 1"):
            world = World()
            client = world.client()
            client.get("/v1/models")
            world.backend().send(
                b"HTTP/1.1 200 OK\r\nX-A: %s\r\nContent-Length: 2\r\n\r\n{}" % value
            )
            world.reactor.advance(0)
            head = client.received().partition(b"\r\n\r\n")[0]
            self.assertNotIn(
                b"\nX-Evil",
                head.replace(b"\r\nX-Evil", b"") and head if b"\r\nX-Evil" not in head else b"",
            )
            self.assertNotIn(b"a\n", head)

    def test_hop_by_hop_headers_of_the_client(self) -> None:
        sent = (
            b"GET /v1/models HTTP/1.1\r\nHost: b\r\nConnection: close, X-Mine, Host\r\n"
            b"X-Mine: 1\r\nX-Other: 2\r\nTE: trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAA\r\n"
            b"Proxy-Authorization: x\r\nKeep-Alive: 5\r\n\r\n"
        )
        (one,) = self.send_both_ways(sent)
        for name in (b"x-mine", b"te", b"upgrade", b"proxy-authorization", b"keep-alive"):
            self.assertNotIn(name, one.names)
        self.assertEqual(one.headers[b"x-other"], b"2")
        self.assertEqual(one.headers[b"host"], b"127.0.0.1:8082")


class Destinations(Case):
    """Requests go to the configured backend only, below `/v1`."""

    def assert_forwarded(
        self, target: bytes, expected: bytes, *headers: bytes, **settings: Any
    ) -> None:
        lines = [b"GET %s HTTP/1.1" % target, b"Host: blockops", *headers, b"", b""]
        (one,) = self.send_both_ways(b"\r\n".join(lines), **settings)
        self.assertEqual(one.line, b"GET %s HTTP/1.1" % expected)
        self.assertEqual(one.headers[b"host"], b"127.0.0.1:8082")
        self.assertEqual(one.names.count(b"host"), 1)
        self.assertEqual(
            {client[:2] for client in self.world.reactor.tcpClients}, {("127.0.0.1", 8082)}
        )

    def test_targets_with_a_host(self) -> None:
        for target, expected in (
            (b"http://evil.example/v1/models", b"/v1/models"),
            (b"HTTPS://evil.example:444/v1/models?x=1", b"/v1/models?x=1"),
            (b"http://u:p@evil.example/v1/x", b"/v1/x"),
            (b"http://evil.example//v1/x", b""),
            (b"http:///v1/x", b"/v1/x"),
            (b"http://127.0.0.1:8082/admin", b""),
            (b"ftp://evil.example/v1/x", b""),
            (b"http:/v1/x", b""),
            (b"//evil.example/v1/x", b""),
            (b"/v1@evil.example/x", b""),
            (b"@evil.example/v1/x", b""),
            (b"evil.example:80", b""),
            (b"*", b""),
            (b"v1/models", b""),
            (b"?v1/models", b""),
            (b"/", b""),
        ):
            if expected:
                self.assert_forwarded(target, expected)
            else:
                self.assertEqual(
                    self.send_both_ways(b"GET %s HTTP/1.1\r\n\r\n" % target), [], target
                )
                self.assertEqual(self.client.status(), 404, target)

    def test_paths_that_leave_the_prefix(self) -> None:
        for path in (
            b"/v1/../admin",
            b"/v1/..",
            b"/v1/.",
            b"/v1/./x",
            b"/v1/%2e%2e/admin",
            b"/v1/%2E%2e%2fadmin",
            b"/v1/.%2e/admin",
            b"/v1/x/..%2f..%2fadmin",
            b"/v1/..%5cadmin",
            b"/v1/..\\admin",
            b"/v1\\..\\admin",
            b"/v1/x\\..\\..\\admin",
            b"/v1/%2e%2e%5cadmin",
            b"/v1/..;/admin",
            b"/v1/..;x=1/admin",
            b"/v1/.;/x",
            b"/v1/%2e%2e;a/admin",
            b"/v1/%252e%252e/admin",
            b"/v1/..%00/admin",
            b"/v1/..%20/x",
            b"/../v1/../admin",
            b"//v1/models",
            b"/V1/models",
            b"/v1%2fmodels",
            b"/v1;/models",
            b"/%2fv1/models",
            b"/health/../v1/models",
            b"/health/..%2fv1/models",
        ):
            self.assertEqual(self.send_both_ways(b"GET %s HTTP/1.1\r\n\r\n" % path), [], path)
            self.assertIn(self.client.status(), (404, 405), path)

    def test_unusual_paths(self) -> None:
        for path in (
            b"/v1/a..b",
            b"/v1/...",
            b"/v1/a%2fb",
            b"/v1//x",
            b"/v1/x;y=1",
            b"/v1/x?y=/../z",
            b"/v1/x?a=http://evil.example/",
            b"/v1/%41",
            b"/v1/x%25",
            b"/v1/~x!$&'()*+,=:@",
        ):
            self.assert_forwarded(path, path)

    def test_model_names(self) -> None:
        for name in (
            b"org/name",
            b"org%2Fname",
            b"a?b=c",
            b"a%3Fb",
            b"http://evil.example/x",
            b"..name",
            b"a:b@c",
        ):
            (one,) = self.send_both_ways(b"GET /v1/models/%s HTTP/1.1\r\n\r\n" % name)
            self.assertEqual(one.line, b"GET /v1/models/%s HTTP/1.1" % name)
        for name in (b"..", b"../x", b"%2e%2e", b"x/../../admin", b"x/..;/y"):
            self.assertEqual(self.send_both_ways(b"GET /v1/models/%s HTTP/1.1\r\n\r\n" % name), [])

    def test_headers_that_name_a_host(self) -> None:
        for header in (
            b"X-Forwarded-Host: evil.example",
            b"X-Forwarded-For: 169.254.169.254",
            b"Forwarded: host=evil.example",
            b"X-Original-URL: /admin",
            b"X-Rewrite-URL: http://evil.example/",
            b"X-Host: evil.example",
            b"Referer: http://evil.example/",
            b"Destination: http://evil.example/",
        ):
            self.assert_forwarded(b"/v1/models", b"/v1/models", header)

    def test_the_host_header(self) -> None:
        for host in (b"evil.example", b"127.0.0.1:9999", b"a/b", b"[::1]:80", b"", b"u@evil"):
            (one,) = self.send_both_ways(b"GET /v1/models HTTP/1.1\r\nHost: %s\r\n\r\n" % host)
            self.assertEqual(one.headers[b"host"], b"127.0.0.1:8082")

    def test_urls_in_a_request_are_not_fetched(self) -> None:
        """Blockops does not fetch images and the like; the backend may."""
        evil = "http://169.254.169.254/latest/meta-data"
        content = [{"type": "image_url", "image_url": {"url": evil}}]
        for fields in (
            {"model": evil},
            {"messages": [{"role": "user", "content": content}]},
            {"tools": [{"type": "mcp", "server_url": evil}]},
            {"base_url": evil, "api_base": evil, "user": evil},
            {
                "tools": [
                    {"type": "function", "function": {"name": "f", "parameters": {"$ref": evil}}}
                ]
            },
        ):
            body = json.dumps(chat(**{"stream": False, **fields})).encode()
            (one,) = self.send_both_ways(
                post(TARGETS[1], b"Content-Length: %d" % len(body), body=body)
            )
            self.assertEqual(one.line, b"POST /v1/chat/completions HTTP/1.1")
            self.assertEqual(
                {client[:2] for client in self.world.reactor.tcpClients}, {("127.0.0.1", 8082)}
            )

    def test_redirects_are_not_followed(self) -> None:
        for status in (b"301 Moved", b"302 Found", b"303 See Other", b"307 T", b"308 P"):
            world = World()
            client = world.client()
            client.get("/v1/models")
            world.backend().send(
                b"HTTP/1.1 %s\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"
                % status
            )
            world.reactor.advance(0)
            self.assertEqual(world.connection_attempts(), 1)
            self.assertEqual(client.status(), int(status[:3]))


class Combinations(Case):
    """In any combination, one request of a client is at most one at the backend."""

    @given(
        st.lists(
            st.sampled_from(
                [
                    b"Content-Length: 5",
                    b"Content-Length: 0",
                    b"Content-Length:5 ",
                    b"Transfer-Encoding: chunked",
                    b"Transfer-Encoding: identity",
                    b"transfer-encoding:chunked\t",
                    b" Content-Length: 5",
                    b"X: y\n Z",
                    b"Connection: close",
                    b"Connection: Content-Length",
                    b"Expect: 100-continue",
                    b"Host: x",
                ]
            ),
            max_size=4,
        ),
        st.lists(
            st.sampled_from(
                [b"hello", b"0\r\n\r\n", b"5\r\nhello\r\n", b"5\nhello\n", b"0\n\n", b"\r\n", b";x"]
            ),
            max_size=4,
        ),
        st.sampled_from(TARGETS),
    )
    def test_any_request(self, headers: list[bytes], body: list[bytes], target: bytes) -> None:
        found = self.send_pieces(post(target, *headers, body=b"".join(body)) + SMUGGLED)
        lines = [each.line for each in found]
        self.assertLessEqual(lines.count(b"POST %s HTTP/1.1" % target), 1)
        self.assertLessEqual(len(found), 2)
        for one in found:
            self.assertEqual(one.names.count(b"host"), 1)
            self.assertLessEqual(one.names.count(b"content-length"), 1)
            self.assertFalse({b"content-length", b"transfer-encoding"} <= set(one.names))
        is_valid = all(header in _VALID_HEADERS for header in headers)
        if b"DELETE /v1/poison HTTP/1.1" in lines and lines[0].startswith(b"POST"):
            # After a valid request it is a request like any other.
            self.assertTrue(is_valid, headers)
            found[0].data()


_VALID_HEADERS = {
    b"Content-Length: 5",
    b"Content-Length: 0",
    b"Content-Length:5 ",
    b"Transfer-Encoding: chunked",
    b"transfer-encoding:chunked\t",
    b"Connection: Content-Length",
    b"Expect: 100-continue",
    b"Host: x",
}


class StreamedText(Case):
    def test_http_in_a_stream_stays_text(self) -> None:
        """The model's text stays in its stream, even if it looks like HTTP."""
        world = World()
        client, backend = world.start_chat()
        backend.begin_stream()
        evil = "0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison\n\ndata: [DONE]\n\n"
        backend.stream(chunk(evil, role="assistant"), chunk(finish="stop"), DONE)
        world.reactor.advance(0)
        self.assertTrue(client.is_complete())
        texts = [
            json.loads(each)["choices"][0]["delta"].get("content") for each in client.events()[:-1]
        ]
        self.assertEqual("".join(filter(None, texts)), evil)
        self.assertEqual(client.events()[-1], "[DONE]")
