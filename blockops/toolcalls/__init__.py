"""The model's text in, text and tool calls out."""
