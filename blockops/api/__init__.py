"""
The formats of the HTTP APIs.

They are: server-sent events, JSON, requests, chunks, errors of backends, lists of models, a notice
in an answer, and the report on an answer. Everything is sans-IO, values in and values out. Reading
tool calls from the model's text belongs in `toolcalls`, changing a backend's response in
`translation`.
"""
