"""
An OpenAI API proxy for local LLM servers: streams tool calls that models write as text.

The packages follow the path of a request; docs/architecture.md describes them. Here are only the
version, the entry points (`tap`, `doctor`), the error that all packages share (`errors`) and the
interface for plugins (`plugins`).
"""

__version__ = "0.1.0"
