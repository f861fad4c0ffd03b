"""What differs between two configurations."""

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.config.whole import Config


def differences(before: Config, now: Config) -> tuple[str, ...]:
    """The keys whose values differ, such as `pools.chat.policy`; those of a section that came or went as one."""
    return tuple(_differences(before.model_dump(), now.model_dump(), ""))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], path: str) -> Iterator[str]:
    for key in dict.fromkeys((*before, *now)):
        one, other = before.get(key), now.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{path}{key}.")
        elif one != other:
            yield f"{path}{key}"
