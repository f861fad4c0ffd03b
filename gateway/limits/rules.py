"""Which buckets a request takes from: pure."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Literal

from gateway.core.caller import ANONYMOUS, Tenant
from gateway.limits.bucket import DAY, MINUTE, Bucket, Counts, OnRedisDown

Subject = Literal["key", "tenant", "user", "model"]
TokenKind = Literal["prompt", "completion", "both"]

LIMITS = ("requests_per_minute", "tokens_per_minute", "requests_per_day", "tokens_per_day", "concurrent")
"""Every limit there is, and a metric's label."""
_PERIODS = {"minute": MINUTE, "day": DAY}
_COUNTS = {"prompt": Counts.PROMPT, "completion": Counts.COMPLETION, "both": Counts.BOTH}


@dataclass(frozen=True, slots=True)
class Rule:
    """Limits for each subject of one kind that a glob admits, over the models that another one admits."""

    per: Subject
    amounts: Sequence[tuple[str, int]]
    """(one of `LIMITS`, how much)."""
    match: str = "*"
    model: str = "*"
    count: TokenKind = "both"
    on_redis_down: OnRedisDown = "local"


@dataclass(frozen=True, slots=True)
class Rules:
    """All limits in force."""

    of_keys: Sequence[tuple[str, int]] = ()
    """What each key has, if it has no limit of that name of its own."""
    rules: Sequence[Rule] = ()
    on_redis_down: OnRedisDown = "local"
    """Of the keys' limits."""

    def buckets(self, tenant: Tenant, user: str, model: str) -> tuple[Bucket, ...]:
        """What a request of this caller for this model, by the name asked for, takes from; each bucket once."""
        return tuple(self._buckets(tenant, user, model))

    def _buckets(self, tenant: Tenant, user: str, model: str) -> Iterator[Bucket]:
        if tenant is not ANONYMOUS:
            own = Rule("key", self._of_key(tenant), on_redis_down=self.on_redis_down)
            yield from _of_rule(own, "own", (tenant.key_id,), "this key")
        for rule in self.rules:
            subject, words = {
                "key": (tenant.key_id, "this key"),
                "tenant": (tenant.team, f"tenant {tenant.team!r}"),
                "user": (user, "this user"),
                "model": (model, f"model {model[:256]!r}"),
            }[rule.per]
            if subject and fnmatchcase(subject, rule.match) and fnmatchcase(model, rule.model):
                # A model's rule has one bucket a model anyway.
                over = "" if rule.model == "*" or rule.per == "model" else f", models {rule.model!r}"
                # Applications of two tenants may give two people the same name.
                whose = (tenant.team, subject) if rule.per == "user" else (subject,)
                yield from _of_rule(rule, "rule", whose, words + over)

    def _of_key(self, tenant: Tenant) -> Sequence[tuple[str, int]]:
        amounts = dict(self.of_keys)
        for name in ("requests_per_minute", "tokens_per_minute", "concurrent"):
            if (amount := getattr(tenant, name)) is not None:
                amounts[name] = amount
        return [(name, amounts[name]) for name in LIMITS if name in amounts]


def words_of(bucket: Bucket) -> str:
    """A limit's name for people: `completion tokens per minute`."""
    if bucket.name == "concurrent":
        return "concurrent requests"
    part = {Counts.PROMPT: "prompt ", Counts.COMPLETION: "completion "}.get(bucket.counts, "")
    return part + bucket.name.replace("_", " ")


def _of_rule(rule: Rule, kind: str, subject: tuple[str, ...], words: str) -> Iterable[Bucket]:
    for name, amount in rule.amounts:
        unit, _, period = name.partition("_per_")
        yield Bucket(
            # Not by its amount: a limit that is changed goes on from where it was. By all that tells two rules apart,
            # though: no request may have one bucket twice.
            _key(kind, rule.per, rule.match, rule.model, rule.count, name, *subject),
            name,
            amount,
            _PERIODS.get(period, 0.0),
            _COUNTS[rule.count] if unit == "tokens" else Counts.REQUESTS,
            rule.on_redis_down,
            words,
        )


def _key(*parts: str) -> bytes:
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=15, person=b"poolgate-limits").hexdigest().encode("ascii")
