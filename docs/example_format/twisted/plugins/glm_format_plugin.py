"""The module in which Twisted finds the dialect."""

from glm_format import GlmDialect

glm = GlmDialect()
