"""
Translates a backend's response to the client's.

`stream` and `non_streaming` are for the two kinds of response, `choice` is for one choice of an
answer, `notice_insertion` and `model_alias` are for what blockops adds. The package is part of the
core: bytes and values in and out, without sockets, clocks or Twisted. The formats of the HTTP APIs
belong in `api`, the dialects of tool calls in `toolcalls`, requests and history in `conversation`.
"""
