"""The formats that are always known, in the order in which they are asked."""

from __future__ import annotations

from blockops.wire.toolcalls.formats.line_json import LineJson
from blockops.wire.toolcalls.formats.protocol import ToolCallFormat
from blockops.wire.toolcalls.formats.tagged_json import TaggedJson
from blockops.wire.toolcalls.formats.tagged_xml import TaggedXml

BUILT_IN: tuple[ToolCallFormat, ...] = (TaggedJson(), TaggedXml(), LineJson())
