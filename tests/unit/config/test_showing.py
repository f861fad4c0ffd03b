"""All of a configuration is shown but its secrets."""

import json
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from gateway.config.reading import load_config
from gateway.config.showing import MASK, shown
from gateway.config.whole import Config


def fields(model: type[BaseModel], path: str = "") -> list[tuple[str, bool]]:
    """(Each key that holds a value, whether it is a secret)."""
    found: list[tuple[str, bool]] = []
    for name, about in model.model_fields.items():
        sections = [kind for kind in kinds(about.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not sections:
            found.append((f"{path}{name}", about.repr is False))
        for section in sections:
            found += fields(section, f"{path}{name}.")
    return found


def kinds(annotation: Any) -> list[Any]:
    inner = [kind for each in get_args(annotation) for kind in kinds(each)]
    return inner or [annotation]


SECRET_WORDS = ("token", "secret", "password", "api_key", "credential", "redis_url", "private", "headers")


NO_SECRETS = {
    "auth.jwt.tenant_claim",
    "limits.default.tokens_per_minute",
    "limits.rules.tokens_per_minute",
    "limits.rules.tokens_per_day",
}


def test_every_field_that_sounds_like_a_secret_is_masked() -> None:
    found = fields(Config)
    assert len(found) > 40
    for key, secret in found:
        sounds = any(word in key.rpartition(".")[2] for word in SECRET_WORDS) and key not in NO_SECRETS
        assert secret == sounds, f"{key}: give the field repr=False if it is a secret, or name it here if it is none"


SECRET = "hunter2-hunter2-hunter2"


def test_no_secret_is_shown() -> None:
    flags = {
        "server.ops_token": SECRET,
        "upstream.api_key": SECRET,
        "auth.forwarded_user_secret": SECRET,
        "limits.redis_url": f"rediss://gate:{SECRET}@redis:6379/0?password={SECRET}&x=1",
        "auth.jwt": {"issuer": f"https://me:{SECRET}@idp", "audience": "x"},
    }
    told = shown(load_config(None, {}, flags))
    assert SECRET not in json.dumps(told)
    assert (told["server"]["ops_token"], told["upstream"]["api_key"]) == (MASK, MASK)
    assert told["limits"]["redis_url"] == f"rediss://gate:{MASK}@redis:6379/0?password={MASK}&x={MASK}"
    assert told["auth"]["jwt"]["issuer"] == f"https://me:{MASK}@idp"


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://redis:6379/0", "redis://redis:6379/0"),
        (f"redis://:{SECRET}@redis", f"redis://:{MASK}@redis"),
        (f"redis://{SECRET}@redis", f"redis://{MASK}@redis"),
        (f"redis://a:{SECRET}@{SECRET}@redis", f"redis://a:{MASK}@redis"),
        (f"unix://:{SECRET}@/run/redis.sock?db=1", f"unix://:{MASK}@/run/redis.sock?db={MASK}"),
    ],
)
def test_of_a_redis_url_all_but_the_secret_is_shown(url: str, masked: str) -> None:
    assert shown(load_config(None, {}, {"limits.redis_url": url}))["limits"]["redis_url"] == masked


def test_what_is_not_set_is_shown_as_not_set() -> None:
    told = shown(load_config(None, {}))
    assert (told["server"]["ops_token"], told["limits"]["redis_url"], told["auth"]["jwt"]) == (None, None, None)
