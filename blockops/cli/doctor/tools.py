"""What a backend does with the tools that a request offers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from blockops import errors
from blockops.api.chat.request import ChatRequest
from blockops.cli.doctor.findings import Finding
from blockops.errors import ApiError
from blockops.toolcalls.options import Rules
from blockops.translation import stream as transcode
from blockops.upstream.probe import Answer, Asking

#: What the model is asked, with and without the tool.
QUESTION = "What is the weather in Paris? Use the tool get_weather to find out."
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city's name."}},
            "required": ["city"],
        },
    },
}
#: Tokens that an answer may have: a call, and some thought before it.
MAX_TOKENS = 512
#: Tokens from which on an answer without a word must have said something that got lost.
SILENT = 8

#: Models that were taught the XML format, by what their names have in them.
_XML = re.compile(r"qwen-?3-?coder|qwen-?3\.5", re.IGNORECASE)


class _Message(msgspec.Struct):
    content: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


class Said(NamedTuple):
    """
    What a backend answered to one question.

    :ivar refusal: its words, where it refused; None where it answered
    :ivar text: the text of the answer
    :ivar structured: calls that it structured itself
    :ivar found: calls that blockops finds in the text
    :ivar prompt: tokens of the prompt; None where it does not tell
    :ivar answer: tokens of the answer; None where it does not tell
    """

    refusal: str | None = None
    text: str = ""
    structured: int = 0
    found: int = 0
    prompt: int | None = None
    answer: int | None = None
    finish: str | None = None

    @property
    def silent(self) -> bool:
        """Say whether the model wrote something that does not show."""
        if self.text.strip() or self.structured:
            return False
        return self.finish == "tool_calls" or (self.answer or 0) >= SILENT


async def ask(
    asking: Asking, model: str | None, question: str, *, offer: bool, patience: float
) -> Said:
    """
    Ask the model `question`, with the tool on offer or without.

    :raises ApiError: 504, no answer came within `patience` seconds; 502, it is none
    """
    request: dict[str, Any] = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
    }
    if model is not None:
        request["model"] = model
    if offer:
        request["tools"] = [TOOL]
    answer = await asking.ask("POST /v1/chat/completions", request, patience)
    if answer is None:
        raise ApiError(504, f"The backend did not answer a question within {patience:g} seconds.")
    if not answer.good:
        return Said(refusal=errors.message_in(answer.body) or f"status {answer.status}")
    return _read(answer, request)


def _read(answer: Answer, request: Mapping[str, Any]) -> Said:
    completion = answer.read(_Completion)
    if completion is None or not completion.choices:
        raise ApiError(502, "The backend's answer to a chat request is no chat.completion.")
    message, usage = completion.choices[0].message, completion.usage or _Usage()
    structured = len(message.tool_calls or ())
    asked = ChatRequest.parse(msgspec.json.encode(request))
    _, report = transcode.whole(answer.body, asked, Rules(translate="always"))
    return Said(
        text=message.content or "",
        structured=structured,
        found=report.calls - structured,
        prompt=usage.prompt_tokens,
        answer=usage.completion_tokens,
        finish=completion.choices[0].finish_reason,
    )


def findings(without: Said, offered: Said, model: str | None) -> list[Finding]:
    """
    Return what the answers tell.

    :param without: the answer to a question with no tools on offer
    :param offered: the answer to the same question with a tool on offer
    :param model: which model was asked
    """
    if offered.refusal is not None:
        return [_refused(offered.refusal, model)]
    return [_told(without, offered, model), _calls(offered)]


def _in_prompt(model: str | None) -> tuple[str, ...]:
    """Return the options that write tools into the prompt of `model`."""
    known = _XML.search(model or "")
    return ("--tools=prompt", "--tool-format=xml") if known else ("--tools=prompt",)


def _refused(words: str, model: str | None) -> Finding:
    return Finding(
        topic="tools",
        verdict="refused",
        text=f"Refused, in these words: {words}",
        options=_in_prompt(model),
        hint="It may take tools once its own tool parser is switched on; without one, blockops "
        "writes them into the prompt.",
    )


def _told(without: Said, offered: Said, model: str | None) -> Finding:
    """Say whether the model hears of the tools: then its prompt is longer with them."""
    if without.prompt is None or offered.prompt is None:
        return Finding(
            topic="tools",
            verdict="not known",
            text="Taken; but it does not tell the length of its prompts, so whether the model "
            "hears of them does not show.",
        )
    lengths = f"{offered.prompt} tokens with a tool on offer, {without.prompt} without"
    if offered.prompt > without.prompt:
        return Finding(
            topic="tools",
            verdict="told",
            text=f"The chat template tells the model of them: its prompt has {lengths}.",
        )
    return Finding(
        topic="tools",
        verdict="not told",
        text=f"Taken, and left out: the model's prompt has {lengths}. blockops has to write them "
        "into the prompt.",
        options=_in_prompt(model),
        hint="A chat template that renders tools would do, too, in place of --tools=prompt.",
    )


def _calls(offered: Said) -> Finding:
    if offered.structured:
        leaked = "<tool_call" in offered.text
        return Finding(
            topic="calls",
            verdict="structured",
            text="It structures the calls itself; blockops passes them."
            + (" A piece of the tag stays in its text; blockops takes it away." if leaked else ""),
        )
    if offered.found:
        return Finding(
            topic="calls",
            verdict="text",
            text="The model writes calls as text; blockops makes them tool_calls.",
        )
    if offered.silent:
        return Finding(
            topic="calls",
            verdict="lost",
            text="The answer is empty although the model wrote something: the backend's own tool "
            "parser has swallowed a call that it could not read.",
            options=("--tools=prompt", "--tool-format=line"),
            hint="Switch its tool parser off, or take the one made for the model. TOOL_CALL: lines "
            "come through most parsers.",
        )
    return Finding(
        topic="calls",
        verdict="none",
        text="The model answered without a call. --question asks it something else.",
    )
