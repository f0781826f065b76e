"""The formats in which models write tool calls: what a format is, and one module for each."""
