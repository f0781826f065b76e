"""
The readers of values and of whole calls from which dialects are made.

A module belongs here if its syntax may serve several dialects; a dialect's openers, its prompt and
the text around its calls are in `toolcalls.dialects`. A reader is fed text in pieces, and its
output does not depend on where the text is cut.
"""
