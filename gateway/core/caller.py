"""Who calls: the tenant behind a key, and what it may use."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

ISSUED_KEY_ID = "jwt-"
"""How the `key_id` of somebody begins who has an issuer's token: there may be more of them than keys."""

MAX_USER_CHARACTERS = 256
"""In the name of one for whom somebody asks."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Tenant:
    """The owner of a key; one object for each key, told apart by identity.

    `key_id` is public (it stands in logs); the key itself is kept nowhere.
    """

    key_id: str
    team: str
    models: tuple[str, ...] = ("*",)
    """Globs over model names; one that matches is enough."""
    allow_fields: frozenset[str] = frozenset()
    """Guarded body fields that this key may send."""
    debug: bool = False
    requests_per_minute: int | None = None
    """Its own limit; None, here and below: what keys have by default."""
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    """Requests running at once."""
    priority: int = 0
    """Lower waits less, as vLLM counts it."""
    forwards_user: bool = False
    """Whether it speaks for others, and is believed when it says for whom."""
    expires_at: float | None = None
    """Wall-clock seconds since 1970; None: never."""

    def may_use(self, model: str) -> bool:
        """Whether one of the key's globs admits the model name asked for."""
        return "*" in self.models or any(fnmatchcase(model, glob) for glob in self.models)


ANONYMOUS = Tenant(key_id="anonymous", team="anonymous")
"""Everyone, when authentication is off."""
