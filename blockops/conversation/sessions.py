"""
Who is talking, and what was already said to them.

A session holds what has to outlive a request: which notices were given, and for each of its
histories where it is cut and by how much it was undercounted. No text is kept.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import msgspec

from blockops.conversation.context_window import Cut
from blockops.conversation.messages import DIGEST_SIZE, Facts, Recent
from blockops.conversation.notices import Kind
from blockops.conversation.token_counts import Tally

#: Histories of one session that are told apart, twice: an agent has sub-agents.
MAX_THREADS = 8
#: Messages of a prompt whose guessed tokens are remembered; what is guessed of more is their count.
MAX_GUESSED = 500
#: Characters of a name that a client gives its session; what is longer is told apart by a digest.
LONGEST_NAME = 64


class Identity(msgspec.Struct, frozen=True):
    """
    What a request says of whose it is.

    :param header: `X-Session-Id`
    :param metadata: `metadata.session_id`
    :param cache_key: `prompt_cache_key`
    :param user: `user`
    :param address: where the client is
    :param key: what it authorizes itself with
    :param first_user: the digest of the first message of a user; system messages are no part of
        it, for they carry the time of day
    """

    header: str = ""
    metadata: str = ""
    cache_key: str = ""
    user: str = ""
    address: str = ""
    key: str = ""
    model: str = ""
    first_user: bytes = b""

    def name(self) -> str:
        """Return the name of the session: no two sessions have the same, and no secret is in it."""
        for source in ("header", "metadata", "cache_key", "user"):
            said: str = getattr(self, source)
            if said:
                short = len(said) <= LONGEST_NAME and said.isprintable()
                return f"{source}:{said if short else _digest([said.encode('utf-8', 'replace')])}"
        texts = (self.address, self.key, self.model)
        return "client:" + _digest(
            [*(text.encode("utf-8", "surrogatepass") for text in texts), self.first_user]
        )


def _digest(parts: Iterable[bytes]) -> str:
    over = blake2b(digest_size=16)
    for part in parts:
        over.update(b"%d:" % len(part) + part)
    return over.hexdigest()


#: Most are told nothing, and an empty set of one's own takes 200 bytes.
_NOTHING: frozenset[Kind] = frozenset()


class Told:
    """What somebody was told."""

    __slots__ = ("_said",)

    def __init__(self) -> None:
        self._said = _NOTHING

    def say(self, kind: Kind) -> bool:
        """Note that a notice is being given; False if it was given before."""
        if kind in self._said:
            return False
        self._said |= {kind}
        return True

    def unsay(self, kind: Kind) -> None:
        """Note that a notice was not given after all, or may be due again."""
        self._said -= {kind}


_UNCUT = Cut()


class Thread:
    """
    One history of a session, as it grows.

    :ivar cut: where it was cut last
    :ivar length: tokens of it as it came last
    """

    __slots__ = ("_beyond", "_guessed", "_guesses", "cut", "length")

    def __init__(self) -> None:
        self.cut = _UNCUT
        self.length = 0
        #: What the backend reported for the last prompt, less what was counted of it for good.
        self._beyond = 0
        #: The digests of its other messages, and what was guessed of each of these.
        self._guessed = b""
        self._guesses: Sequence[int] = ()

    def learn(self, sent: Sequence[Facts], tally: Tally, reported: int) -> None:
        """
        Take the backend's word for the last prompt.

        :param sent: its messages, and its tools
        :param reported: its `usage.prompt_tokens`
        """
        counts = list(map(tally.counted, sent))
        unsure = [facts for facts, count in zip(sent, counts, strict=True) if count is None]
        sure = sum([count for count in counts if count is not None])
        sure += sum(map(tally.count, unsure[MAX_GUESSED:]))
        del unsure[MAX_GUESSED:]
        self._guessed = b"".join([facts.digest for facts in unsure])
        self._guesses = array("Q", map(tally.guess, unsure))
        self._beyond = reported - sure

    @property
    def most_missed(self) -> int:
        """The most that `missed` can return, whatever has come."""
        return max(0, self._beyond)

    def missed(self, messages: Iterable[Facts], tally: Tally) -> int:
        """
        Return how many tokens the last prompt had beyond those that are counted of it now.

        What is known to be larger is not undercounted again, even if it was never counted and
        other sessions have made guesses smaller since then.

        :param messages: those that have come, and the tools
        """
        if self._beyond <= 0:
            return 0
        came = {facts.digest: facts for facts in messages}
        counted = 0
        for at, then in enumerate(self._guesses):
            facts = came.get(self._guessed[DIGEST_SIZE * at : DIGEST_SIZE * (at + 1)])
            counted += then if facts is None else tally.guess(facts)
        return max(0, self._beyond - counted)


class Session(Told):
    """
    One conversation with one client.

    :ivar name: by which it is known
    :ivar length: messages of the last history that came
    """

    __slots__ = ("_threads", "length", "name")

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.length = 0
        self._threads: Recent[bytes, Thread] = Recent(MAX_THREADS)

    def begin_anew(self) -> None:
        """Forget what was said and sent."""
        self._said = _NOTHING
        self._threads = Recent(MAX_THREADS)

    def thread(self, first_user: bytes) -> Thread:
        """Return what is kept of the history whose first user message has this digest."""
        thread = self._threads.get(first_user)
        if thread is None:
            thread = Thread()
            self._threads.put(first_user, thread)
        return thread


class Sessions:
    """
    The sessions that are known.

    :param most: how many; the one that was silent longest is forgotten first
    :param idle: seconds of silence after which one is forgotten
    """

    def __init__(self, most: int, idle: float) -> None:
        self._most = most
        self._idle = idle
        self._known: dict[str, tuple[float, Session]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def of(self, name: str, now: float) -> Session:
        """
        Return the session `name`.

        :param now: in seconds, of a clock that does not go back
        """
        session = self._taken(name, now) or Session(name)
        self._known[name] = (now, session)
        self._forget(now)
        return session

    def _taken(self, name: str, now: float) -> Session | None:
        last, session = self._known.pop(name, (now, None))
        return session if now - last < self._idle else None

    def _forget(self, now: float) -> None:
        # They stand in the order in which they were last asked for: to look at the first is enough.
        while self._known:
            name, (last, _) = next(iter(self._known.items()))
            if len(self._known) <= self._most and now - last < self._idle:
                break
            del self._known[name]
