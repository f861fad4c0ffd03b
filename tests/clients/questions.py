"""What the calls ask, the same for every client."""

import json
from typing import Any, Final, Literal

from pydantic import BaseModel, Field

QUESTION: Final = "What is the capital of France?"
WEATHER_QUESTION: Final = "What is the weather in Paris?"
TEXTS: Final = ["The sky is blue.", "Bread is baked in an oven."]
TOO_LONG: Final = "word " * 2100
"""Beyond the context of the models in the tests: 2048 tokens, of four bytes with the simulator."""
ENDLESS_SECONDS_PER_TOKEN: Final = 0.05
ENDLESS: Final[dict[str, Any]] = {
    "ignore_eos": True,
    # A real vLLM ignores this and is slow by itself; a simulated pod would be done before anyone could leave.
    "sim_fault": {"kind": "drip", "seconds_per_token": ENDLESS_SECONDS_PER_TOKEN},
}
"""Fields of a generation that takes a minute: if it ends within seconds, it was ended."""
ENDLESS_TOKENS: Final = 1500


class Weather(BaseModel):
    """Tell the weather of a city."""

    city: str = Field(max_length=20)


class Paint(BaseModel):
    """Small closed sets: a tiny model that may choose freely would not come to an end."""

    colour: Literal["red", "green", "blue"]
    glossy: bool


WEATHER_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}


def city_in(arguments: str) -> str:
    """The city of a weather call's arguments, and nothing else may be in them."""
    found = json.loads(arguments)
    assert set(found) == {"city"}
    assert isinstance(found["city"], str)
    return found["city"]
