"""
The contents of a request's messages: sessions, token counts, trimming, notices, tools as text.

`turn` combines the other modules for one chat request. Here belongs everything that depends on the
messages of a conversation. The formats of requests and responses belong in `api`, the translation
of answers in `translation`, and the requests to the backend's tokenizer in `upstream`. This package
is part of the core: no Twisted, no clock, no waiting.
"""
