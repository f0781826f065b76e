"""OpenAI tool calls, streamed, from local models that write them as text."""

__version__ = "0.1.0"
