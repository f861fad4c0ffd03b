"""What sections are made of: their base, the kinds of values that several of them take, and checks they share.

A section is a frozen model that refuses unknown keys. The docstring below each of its fields is what
docs/configuration.md says of that key, and a field whose value is a secret has `repr=False`.
"""

from collections.abc import Hashable, Iterable
from typing import Annotated, TypeVar
from urllib.parse import SplitResult

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from gateway.discovery.models import MAX_NAME_CHARACTERS, is_name

H = TypeVar("H", bound=Hashable)

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Port = Annotated[int, Field(ge=0, le=65_535)]
RequestLimit = Annotated[int, Field(ge=1, le=10_000_000)]
TokenLimit = Annotated[int, Field(ge=1, le=1_000_000_000)]
ConcurrentLimit = Annotated[int, Field(ge=1, le=1_000_000)]
Priority = Annotated[int, Field(ge=-100, le=100)]


def _check_model_name(name: str) -> str:
    if not is_name(name):
        raise ValueError(
            f"{name[:64]!r} is no model's name: at most {MAX_NAME_CHARACTERS} characters that can be printed"
        )
    return name


ModelName = Annotated[str, AfterValidator(_check_model_name)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, use_attribute_docstrings=True)


def first_repeated(values: Iterable[H]) -> tuple[int, H] | None:
    """(its place, the value) of the first that stands there for the second time."""
    seen: set[H] = set()
    for place, value in enumerate(values):
        if value in seen:
            return place, value
        seen.add(value)
    return None


def has_possible_port(url: SplitResult) -> bool:
    """Whether its port, if it names one, is from 1 to 65535."""
    try:
        return url.port is None or url.port > 0
    except ValueError:
        return False
