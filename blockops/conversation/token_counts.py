"""
How many tokens a prompt has.

The backend's own tokenizer says it best; where there is none, the weight of the text does, times a
ratio that each model's `usage.prompt_tokens` corrects. What was counted once stays counted so: a
count that moved would move the place where a history is cut, and with it throw away the backend's
prefix cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from blockops.conversation.messages import Facts, Recent, digest, weigh

#: Messages of which the count is kept, for each model, twice.
MAX_COUNTED = 40_000
#: Models that are told apart: their names come from clients, who may make them up.
MAX_MODELS = 16
#: What a template puts around a message: two tags, a role, newlines.
MESSAGE_TOKENS = 5
#: A picture of the size that vision models scale to, or a minute of sound.
IMAGE_TOKENS = 1200
#: Prompts below this teach nothing: the template's own words weigh too much in them.
TEACHING_TOKENS = 500
#: How much the newest report counts against those before it.
WEIGHT = 0.3
#: What a ratio may be: beyond, the backend counts something else.
RATIOS = (0.3, 4.0)


class Tokens:
    """
    The counts and the estimates of all models.

    :ivar error: by how much the last estimate was off, as a share of what the backend reported;
        above zero it was too high
    """

    def __init__(self) -> None:
        self._models: dict[str, Tally] = {}
        self.error: float | None = None

    def of(self, model: str | None) -> Tally:
        """Return the tally of `model`."""
        name = model or ""
        tally = self._models.pop(name, None) or Tally()
        self._models[name] = tally
        if len(self._models) > MAX_MODELS:
            del self._models[next(iter(self._models))]
        return tally

    def learn(self, model: str | None, weight: float, reported: int) -> None:
        """
        Take the backend's word for a prompt.

        :param weight: of the prompt as it was sent, from `Tally.weight`
        :param reported: its `usage.prompt_tokens`
        """
        if weight <= 0 or reported < TEACHING_TOKENS:
            return
        tally = self.of(model)
        self.error = weight * tally.ratio / reported - 1
        tally.learn(reported / weight)


class Tally:
    """
    The counts of one model.

    :ivar ratio: tokens of the model for each of `Facts.weight`
    """

    def __init__(self) -> None:
        self.ratio = 1.0
        self._taught = False
        self._counts: Recent[bytes, int] = Recent(MAX_COUNTED)

    def count(self, facts: Facts) -> int:
        """Return the tokens of a message, which stay what they are from now on."""
        known = self._counts.get(facts.digest)
        if known is None:
            known = self.guess(facts)
            self._counts.put(facts.digest, known)
        return known

    def counted(self, facts: Facts) -> int | None:
        """Return the tokens of a message as they were counted; None if they were not."""
        return self._counts.get(facts.digest)

    def knows(self, facts: Facts) -> bool:
        """Say whether a message was counted."""
        return self._counts.get(facts.digest) is not None

    def guess(self, facts: Facts) -> int:
        """Return the tokens of a message as they were counted, or else as they might be."""
        known = self._counts.get(facts.digest)
        return _around(facts) + round(facts.weight * self.ratio) if known is None else known

    def unknown(self, messages: Sequence[Facts]) -> list[Facts]:
        """Return those of `messages` that were not counted yet, each once."""
        new = {facts.digest: facts for facts in messages if not self.knows(facts)}
        return list(new.values())

    def note(self, facts: Facts, tokens: int) -> None:
        """Remember that the backend's tokenizer makes `tokens` tokens of a message's text."""
        if not self.knows(facts):
            self._counts.put(facts.digest, _around(facts) + tokens)

    def learn(self, ratio: float) -> None:
        """Let new estimates follow `ratio`."""
        low, high = RATIOS
        ratio = min(max(ratio, low), high)
        self.ratio += (ratio - self.ratio) * (WEIGHT if self._taught else 1.0)
        self._taught = True


def weight_of(messages: Sequence[Facts]) -> float:
    """Return what a prompt of `messages` weighs: its tokens, times a ratio that is the model's."""
    return sum([_around(facts) + facts.weight for facts in messages])


def _around(facts: Facts) -> int:
    """Return the tokens of a message besides those of its text."""
    return MESSAGE_TOKENS + IMAGE_TOKENS * facts.images


def most_of(messages: Sequence[Facts]) -> int:
    """Return how many tokens `messages` have at most, whatever the model."""
    return sum(
        [2 * MESSAGE_TOKENS + 4 * IMAGE_TOKENS * facts.images + facts.size for facts in messages]
    )


def of_tools(tools: bytes) -> Facts:
    """Return a request's tools as something to be counted: models read them as JSON."""
    text = tools.decode("utf-8", "replace")
    return Facts(digest(tools), "system", (), "", weigh(text), len(tools))
