"""Twisted finds the format here."""

from glm_format import GlmFormat

glm = GlmFormat()
