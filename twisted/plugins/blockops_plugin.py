"""
Tells `twistd` that blockops exists.

Twisted swallows whatever this module raises, so it imports nothing of ours.
"""

from twisted.application.service import ServiceMaker

blockops = ServiceMaker(
    "blockops", "blockops.tap", "Give local models OpenAI tool calls.", "blockops"
)
