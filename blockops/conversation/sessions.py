"""
Sessions: the state of conversations that outlives a request.

A session stores which notices were given and, for each history, its trim point and by how much it
was undercounted. It stores no text.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

from blockops.api.request import ChatRequest
from blockops.conversation.context_window import TrimPoint
from blockops.conversation.messages import DIGEST_SIZE, MessageInfo
from blockops.conversation.notices import NoticeKind
from blockops.conversation.token_counts import ModelCounts

#: Histories of one session: an agent has sub-agents.
MAX_HISTORIES = 16
#: Messages of a prompt whose estimates are stored here. Further estimates become counts at once.
MAX_ESTIMATES = 500
#: Characters of the longest id from a client that is used unchanged, not as its digest.
MAX_SESSION_ID_LENGTH = 64


class ClientIdentity(NamedTuple):
    """
    What a request's head and connection tell about its session: `X-Session-Id`, `X-Session-Reset`.

    :param address: the client's address; empty for a Unix socket
    :param key: the name of the API key, or the header `Authorization`
    """

    session_id: str
    address: str
    key: str
    is_reset_requested: bool


def session_id(request: ChatRequest, client: ClientIdentity, first_user: bytes) -> str:
    """
    Return the id of a request's session, which is unique and contains no secret.

    It is the source and value of the first of these that is not empty: the header `X-Session-Id`
    and the fields `metadata.session_id`, `prompt_cache_key` and `user`. Otherwise it is "client:"
    and a digest of the client's address and key, the model and the digest `first_user`; system
    messages are left out, because they often contain the time of day.
    """
    metadata = request.field("metadata")
    sources = {
        "header": client.session_id,
        "metadata": metadata.get("session_id") if isinstance(metadata, dict) else None,
        "cache_key": request.field("prompt_cache_key"),
        "user": request.field("user"),
    }
    for source, value in sources.items():
        name = str(value).strip() if isinstance(value, str | int) else ""
        if name:
            if len(name) <= MAX_SESSION_ID_LENGTH and name.isprintable():
                return f"{source}:{name}"
            parts = [name.encode("utf-8", "replace")]
            break
    else:
        source = "client"
        texts = (client.address, client.key, request.model or "")
        parts = [*(text.encode("utf-8", "surrogatepass") for text in texts), first_user]
    state = blake2b(digest_size=16)
    for part in parts:
        # The length before each part keeps ("1", "k") and ("1k", "") apart.
        state.update(b"%d:" % len(part) + part)
    return f"{source}:{state.hexdigest()}"


# Shared: most sessions get no notice, and an empty set for each of them takes 200 bytes.
_NO_NOTICES: frozenset[NoticeKind] = frozenset()
# Shared: most histories are never trimmed.
_UNTRIMMED = TrimPoint()


class HistoryState:
    """
    The state of one history of a session.

    :ivar rest: the backend's `usage.prompt_tokens` for the last prompt, minus the stored counts of
        its messages: the tokens of the messages that are only estimated, and those that no message
        has, such as the chat template's own. If it is positive, an upper bound of `undercount`
    :ivar last_tokens: of the untrimmed history; 0 if it was certainly short and not counted
    """

    def __init__(self) -> None:
        self.trim_point = _UNTRIMMED
        self.last_tokens = 0
        self.rest = 0
        # The estimated messages of the last prompt: their digests, joined, and their estimates.
        self._estimated_digests = b""
        self._estimates: Sequence[int] = ()

    def learn(self, sent: Sequence[MessageInfo], counts: ModelCounts, reported: int) -> None:
        """Store the `usage.prompt_tokens` of the last prompt, of the messages and tools `sent`."""
        known_counts = list(map(counts.known_count, sent))
        estimated = [info for info, known in zip(sent, known_counts, strict=True) if known is None]
        counted = sum([known for known in known_counts if known is not None])
        counted += sum(map(counts.count, estimated[MAX_ESTIMATES:]))
        del estimated[MAX_ESTIMATES:]
        self._estimated_digests = b"".join([info.digest for info in estimated])
        self._estimates = array("Q", map(counts.estimate, estimated))
        self.rest = reported - counted

    def undercount(self, messages: Iterable[MessageInfo], counts: ModelCounts) -> int:
        """
        Return by how many tokens the last prompt was larger than the sum of its counts now.

        Added to the counts, it keeps a history from being counted below its reported size, even if
        its messages were only estimated and other sessions have lowered the model's ratio since.

        :param messages: those of the new request, and its tools; a message that is no longer among
            them keeps the estimate that it had
        """
        if self.rest <= 0:
            return 0
        present = {info.digest: info for info in messages}
        counted = 0
        for index, estimate in enumerate(self._estimates):
            start = DIGEST_SIZE * index
            info = present.get(self._estimated_digests[start : start + DIGEST_SIZE])
            counted += estimate if info is None else counts.estimate(info)
        return max(0, self.rest - counted)


class Session:
    """One conversation with one client."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.message_count = 0
        self._given_notices = _NO_NOTICES
        # In the order of their last use.
        self._history_states: dict[bytes, HistoryState] = {}

    def reset(self) -> None:
        """Forget the notices that were given, and the histories."""
        self._given_notices = _NO_NOTICES
        self._history_states.clear()

    def mark(self, kind: NoticeKind) -> bool:
        """Record a notice as given; return False if it was given before."""
        if kind in self._given_notices:
            return False
        self._given_notices |= {kind}
        return True

    def unmark(self, kind: NoticeKind) -> None:
        """Record that a notice was not delivered, or that it may be given again."""
        self._given_notices -= {kind}

    def history_state(self, user_digest: bytes) -> HistoryState:
        """Return the state of the history whose first user message has this digest."""
        state = self._history_states.pop(user_digest, None) or HistoryState()
        self._history_states[user_digest] = state
        if len(self._history_states) > MAX_HISTORIES:
            del self._history_states[next(iter(self._history_states))]
        return state


class Sessions:
    """At most `limit` sessions, the last used ones; each ends after `idle` seconds without use."""

    def __init__(self, limit: int, idle: float) -> None:
        self._limit = limit
        self._idle = idle
        # By id: the time of the last request, and the session. In the order of these times.
        self._sessions: dict[str, tuple[float, Session]] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def get_or_create(self, session_id: str, now: float) -> Session:
        """Return the session of a new request, and forget sessions that are idle or too many."""
        last_request, session = self._sessions.pop(session_id, (now, None))
        if session is None or now - last_request >= self._idle:
            session = Session(session_id)
        self._sessions[session_id] = (now, session)
        while self._sessions:
            oldest_id, (last_request, _) = next(iter(self._sessions.items()))
            if len(self._sessions) <= self._limit and now - last_request < self._idle:
                break
            del self._sessions[oldest_id]
        return session
