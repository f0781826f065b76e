"""
`/v1/chat/completions`: its request, and its chunks with their decoder and encoder.

The structs and functions for chunks also handle non-streaming responses and `/v1/completions`. The
request of `/v1/completions`, and what several APIs share, belong in `api` itself.
"""
