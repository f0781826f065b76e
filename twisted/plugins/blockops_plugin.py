"""
Registers `twistd blockops`.

Twisted swallows every exception of this module, so it imports nothing of blockops.
"""

from twisted.application.service import ServiceMaker

blockops = ServiceMaker(
    "blockops",
    "blockops.tap",
    "Give local models OpenAI tool calls.",
    "blockops",
)
