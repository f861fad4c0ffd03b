"""How much of a pod one request may ask for, beside tokens: values, without a library.

A number of answers, a list or a schema costs a pod as it is read, before any limit of tokens can tell: `n` of a million
has brought vLLM down (CVE-2026-34756). What an operator may have a reason to change stands in the configuration; the
rest is far beyond what is in use, and within what a pod bears.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

ENTRIES: Mapping[str, int] = MappingProxyType(
    {
        "stop": 16,
        "stop_sequences": 16,
        "stop_token_ids": 128,
        "bad_words": 128,
        "logprob_token_ids": 128,
        "tools": 128,
        "functions": 128,
        "documents": 2048,
        "queries": 2048,
        "items": 2048,
        "data_1": 2048,
        "data_2": 2048,
        "text_1": 2048,
        "text_2": 2048,
    }
)
"""The most entries that a list may have. Tools, and the inputs of embeddings: as many as OpenAI takes."""

LENGTHS: Mapping[str, int] = MappingProxyType(
    {
        "logit_bias": 16_384,
        "allowed_token_ids": 262_144,
        "response_format": 131_072,
        "structured_outputs": 131_072,
        "text": 131_072,
        "output_config": 131_072,
        "guided_json": 131_072,
        "guided_grammar": 131_072,
        "guided_choice": 131_072,
        "guided_regex": 16_384,
        "stream_options": 4096,
        "chat_template": 65_536,
        "chat_template_kwargs": 65_536,
    }
)
"""The most bytes that a field may take: what is compiled, or walked for each token, before or beside the model."""


class Caps(NamedTuple):
    """What is refused beyond. The first three are the configuration's section `requests`."""

    max_n: int = 8
    """Answers to one prompt: `n`, `best_of`."""
    max_logprobs: int = 20
    """Alternatives per token: `logprobs`, `top_logprobs`, `prompt_logprobs`."""
    media_url_hosts: tuple[str, ...] = ()
    """Where media may be fetched from: hosts in lower case, or `*.` and a domain for all below it."""
    max_prompts: int = 128
    """Prompts of one completion."""
    max_inputs: int = 2048
    """Texts of one embedding."""
    entries: Mapping[str, int] = ENTRIES
    lengths: Mapping[str, int] = LENGTHS


THE_USUAL_CAPS = Caps()
