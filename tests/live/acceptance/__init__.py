"""
The acceptance matrix: every client with every backend, with blockops between them.

This package holds the cells, the clients, the known failures and the page that it writes. Tests of
a single feature with one real backend belong to the modules of `tests.live`.
"""
