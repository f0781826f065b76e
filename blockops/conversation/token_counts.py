"""
Counts and estimates the tokens of prompts.

The backend's own tokenizer is exact. Without one, the tokens of a text are estimated from its
characters and multiplied by the model's ratio, which is calibrated with each `usage.prompt_tokens`
that the backend reports for it. A message that was counted once keeps its count: a count that
changed would move the trim point of its history, and the backend's prefix cache would be lost.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from blockops.conversation.messages import MessageInfo

#: Messages whose counts are stored, for each model.
MAX_COUNTS = 40_000
#: Models with counts of their own. Clients send the names, so there may be any number of them.
MAX_MODELS = 16
#: Tokens that a chat template writes around a message: two tags, a role, newlines.
MESSAGE_TOKENS = 5
#: Tokens of an image of the size to which vision models scale, or of a minute of sound.
IMAGE_TOKENS = 1200
#: The smallest prompt that calibrates a ratio: in others the template's own text counts too much.
MIN_CALIBRATION_TOKENS = 500
#: The weight of the newest report in the moving average of a ratio.
EWMA_WEIGHT = 0.3
#: The lowest and the highest ratio. A backend that reports more or less counts something else.
RATIO_RANGE = (0.3, 4.0)


class TokenCounts:
    """
    The counts and ratios of all models.

    :ivar estimate_error: of the last estimate, as a share of the reported tokens; positive if the
        estimate was too high, None before the first report
    """

    def __init__(self) -> None:
        self._models: dict[str, ModelCounts] = {}
        self.estimate_error: float | None = None

    def for_model(self, model: str | None) -> ModelCounts:
        """Return the counts of `model`; the model that was used least recently is forgotten."""
        name = model or ""
        counts = self._models.pop(name, None) or ModelCounts()
        self._models[name] = counts
        if len(self._models) > MAX_MODELS:
            del self._models[next(iter(self._models))]
        return counts

    def learn(self, model: str | None, estimated: float, reported: int) -> None:
        """Calibrate the model's ratio with a prompt's `raw_estimate` and `usage.prompt_tokens`."""
        if estimated <= 0 or reported < MIN_CALIBRATION_TOKENS:
            return
        counts = self.for_model(model)
        self.estimate_error = estimated * counts.ratio / reported - 1
        counts.update_ratio(reported / estimated)


class ModelCounts:
    """The counts of one model, and its tokens for each token of `MessageInfo.text_estimate`."""

    def __init__(self) -> None:
        self.ratio = 1.0
        self._is_calibrated = False
        # By the message's digest; those that were used last are at the end.
        self._counts: OrderedDict[bytes, int] = OrderedDict()

    def count(self, info: MessageInfo) -> int:
        """Return the tokens of a message. An estimate becomes its count and stays so."""
        known = self.known_count(info)
        return self._store(info, self.estimate(info)) if known is None else known

    def known_count(self, info: MessageInfo) -> int | None:
        """Return the tokens of a message, or None if it was not counted."""
        known = self._counts.get(info.digest)
        if known is not None:
            self._counts.move_to_end(info.digest)
        return known

    def estimate(self, info: MessageInfo) -> int:
        """Return the tokens of a message: its count, or an estimate, which is not stored."""
        known = self.known_count(info)
        return _overhead(info) + round(info.text_estimate * self.ratio) if known is None else known

    def uncounted(self, messages: Sequence[MessageInfo]) -> list[MessageInfo]:
        """Return those of `messages` that were not counted, each once."""
        new = {info.digest: info for info in messages if self.known_count(info) is None}
        return list(new.values())

    def set_count(self, info: MessageInfo, tokens: int) -> None:
        """Store the tokenizer's count of a message's text, unless the message was counted."""
        if self.known_count(info) is None:
            self._store(info, _overhead(info) + tokens)

    def _store(self, info: MessageInfo, tokens: int) -> int:
        self._counts[info.digest] = tokens
        if len(self._counts) > MAX_COUNTS:
            self._counts.popitem(last=False)
        return tokens

    def update_ratio(self, ratio: float) -> None:
        """Move the ratio towards `ratio`; the first one replaces the default."""
        low, high = RATIO_RANGE
        ratio = min(max(ratio, low), high)
        self.ratio += (ratio - self.ratio) * (EWMA_WEIGHT if self._is_calibrated else 1.0)
        self._is_calibrated = True


def raw_estimate(messages: Sequence[MessageInfo]) -> float:
    """Return the estimated tokens of a prompt, not multiplied by a model's ratio."""
    return sum([_overhead(info) + info.text_estimate for info in messages])


def _overhead(info: MessageInfo) -> int:
    return MESSAGE_TOKENS + IMAGE_TOKENS * info.images
