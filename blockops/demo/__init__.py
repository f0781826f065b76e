"""
The demo backend (`--backend demo`): a scripted LLM server, to try blockops without a model.

`server` is the HTTP server, `script` the text of its answers. Only `daemon` imports and starts it.
"""
