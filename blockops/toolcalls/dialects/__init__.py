"""
The dialects that ship with blockops, one module each, and the prompts that describe the tools.

A dialect's declaration and the readers that only this dialect needs belong here; shared readers are
in `toolcalls.grammar`. Dialects from other packages come in through `blockops.plugins`.
"""

from __future__ import annotations

from blockops.toolcalls.dialect import Dialect
from blockops.toolcalls.dialects.hermes import HermesDialect
from blockops.toolcalls.dialects.qwen_xml import QwenXmlDialect
from blockops.toolcalls.dialects.tool_call_line import ToolCallLineDialect

BUILT_IN: tuple[Dialect, ...] = (HermesDialect(), QwenXmlDialect(), ToolCallLineDialect())
"""The dialects of this package, in the order in which they are tried."""
