"""
What an operator reads of the running daemon: traffic log, metrics, memory; and the ticker.

These modules get records and plain values. Not here: the life of a request, which produces them
(`proxy`), and the choice of files and intervals by the settings (`daemon`).
"""
