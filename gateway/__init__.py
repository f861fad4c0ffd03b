"""Poolgate: an OpenAI-compatible gateway in front of pools of vLLM pods."""

__version__ = "0.1.0"
