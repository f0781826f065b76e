"""Examines how a backend handles the tools of a request, and the calls that its model writes."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec

from blockops.api.backend_errors import extract_message
from blockops.api.request import ChatRequest
from blockops.cli.doctor.chat import ChatProbe, Completion, Usage
from blockops.cli.doctor.findings import Finding
from blockops.errors import ApiError
from blockops.toolcalls.options import TranslationOptions
from blockops.translation.non_streaming import ResponseTranslator

#: The default question to the model, with and without the tool.
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
#: Maximum tokens of an answer: a call, with some reasoning before it.
MAX_TOKENS = 512
#: An answer without text and calls, but with at least this many tokens, has lost output.
MIN_LOST_TOKENS = 8

#: Names of models that were trained on the XML dialect.
_XML_MODELS = re.compile(r"qwen-?3-?coder|qwen-?3\.5", re.IGNORECASE)


class ToolAnswer(NamedTuple):
    """A backend's response to one question."""

    error: str | None = None  # the message of an error response
    text: str = ""
    structured_calls: int = 0  # calls that the backend structured
    text_calls: int = 0  # calls that blockops finds in the text
    prompt_tokens: int | None = None  # None if not reported
    answer_tokens: int | None = None  # None if not reported
    finish_reason: str | None = None

    @property
    def has_lost_output(self) -> bool:
        """Return True if the model wrote something that the response does not contain."""
        if self.text.strip() or self.structured_calls:
            return False
        return self.finish_reason == "tool_calls" or (self.answer_tokens or 0) >= MIN_LOST_TOKENS


async def ask_model(chat: ChatProbe, question: str, *, offer_tool: bool) -> ToolAnswer:
    """Send `question`; raise 504 without a response in time, 502 without a `chat.completion`."""
    request: dict[str, Any] = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        **({"tools": [TOOL]} if offer_tool else {}),
    }
    response = await chat.request(request)
    if response is None:
        raise ApiError(
            504,
            f"The backend did not answer a question within {chat.response_timeout:g} seconds. If "
            "it is still loading its model, wait, or raise --patience.",
        )
    if not response.is_success:
        return ToolAnswer(error=extract_message(response.body) or f"status {response.status}")
    completion = response.decode(Completion)
    if completion is None or not completion.choices:
        raise ApiError(
            502, "The backend's response to a chat request is not a chat.completion object."
        )
    choice, usage = completion.choices[0], completion.usage or Usage()
    structured = len(choice.message.tool_calls or ())
    chat_request = ChatRequest(msgspec.json.encode(request))
    translator = ResponseTranslator(chat_request, TranslationOptions(translate="always"))
    translator.receive_body(response.body)
    return ToolAnswer(
        text=choice.message.content or "",
        structured_calls=structured,
        text_calls=translator.report.calls - structured,
        prompt_tokens=usage.prompt_tokens,
        answer_tokens=usage.completion_tokens,
        finish_reason=choice.finish_reason,
    )


def findings(without_tool: ToolAnswer, with_tool: ToolAnswer, model: str | None) -> list[Finding]:
    """Return the findings from the answers to one question, without and with a tool on offer."""
    if with_tool.error is not None:
        return [_rejected(with_tool.error, model)]
    return [_in_prompt(without_tool, with_tool, model), _calls(with_tool)]


def _prompt_options(model: str | None) -> tuple[str, ...]:
    is_xml = _XML_MODELS.search(model or "")
    return ("--tools=prompt", "--tool-format=xml") if is_xml else ("--tools=prompt",)


def _rejected(message: str, model: str | None) -> Finding:
    return Finding(
        topic="tools",
        verdict="rejected",
        text=f"Rejected, with this message: {message}",
        options=_prompt_options(model),
        hint="It may accept tools after its tool parser is switched on. Otherwise use "
        "--tools=prompt, which writes them into the prompt.",
    )


def _in_prompt(without_tool: ToolAnswer, with_tool: ToolAnswer, model: str | None) -> Finding:
    """Return whether the chat template renders tools: then the prompt is longer with a tool."""
    plain, offered = without_tool.prompt_tokens, with_tool.prompt_tokens
    if plain is None or offered is None:
        return Finding(
            topic="tools",
            verdict="unknown",
            text="Accepted. It does not report the length of its prompts, so they do not show "
            "whether the model's prompt contains the tools.",
        )
    lengths = f"{offered} tokens with a tool on offer, {plain} without"
    if offered > plain:
        text = f"The chat template renders them: the model's prompt has {lengths}."
        return Finding(topic="tools", verdict="in prompt", text=text)
    return Finding(
        topic="tools",
        verdict="ignored",
        text=f"Accepted, and ignored: the model's prompt has {lengths}. blockops must write them "
        "into the prompt.",
        options=_prompt_options(model),
        hint="A chat template that renders tools is an alternative to --tools=prompt.",
    )


def _calls(answer: ToolAnswer) -> Finding:
    if answer.structured_calls:
        text = "It structures the calls itself; blockops passes them through."
        if "<tool_call" in answer.text:
            text += " Part of a tag remains in its text; blockops removes it."
        return Finding(topic="calls", verdict="structured", text=text)
    if answer.text_calls:
        text = "The model writes calls as text; blockops translates them to tool_calls."
        return Finding(topic="calls", verdict="text", text=text)
    if answer.has_lost_output:
        return Finding(
            topic="calls",
            verdict="lost",
            text="The answer is empty although the model wrote something: the backend's own tool "
            "parser has swallowed a call that it could not read.",
            options=("--tools=prompt", "--tool-format=line"),
            hint="Switch its tool parser off, or use the one made for the model. TOOL_CALL: lines "
            "pass through most parsers.",
        )
    text = "The model answered without a call. Try another question with --question."
    return Finding(topic="calls", verdict="none", text=text)
