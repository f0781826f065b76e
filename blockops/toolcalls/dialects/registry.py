"""The formats that are always known, in the order in which they are asked."""

from __future__ import annotations

from blockops.toolcalls.dialects.hermes import TaggedJson
from blockops.toolcalls.dialects.qwen_xml import TaggedXml
from blockops.toolcalls.dialects.tool_call_line import LineJson
from blockops.toolcalls.reader import ToolCallFormat

BUILT_IN: tuple[ToolCallFormat, ...] = (TaggedJson(), TaggedXml(), LineJson())
