"""
Finds tool calls in a model's text: text goes in, text and tool calls come out.

The parser, the scanner for Markdown and openers, the interface of a dialect, and what a request and
the operator allow belong here; `grammar` has the shared readers, `dialects` the declarations. The
chunks and responses of the HTTP API do not: they are in `api` and `translation`.
"""
