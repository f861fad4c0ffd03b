"""What all request bodies together may take of the memory.

Counted is what is there, not what was announced: who announces 8 MiB and sends nothing takes nothing, so announcing
cannot fill it. On a head is asked only whether its body would fit now; bodies that then come together and do not all
fit are refused while they come. A body is counted from its first byte until its answer begins (until then it may be
sent to another pod) or its client has gone. Whoever takes gives back: a `Share` for each body, or a count of its own
(`edge.protocol`).

One caller's bodies have half of it at most, unless it is a single one: else 64 connections of one key, each with a body
that lacks its last byte, have all others refused for as long as a body may take.
"""

from collections.abc import Callable
from math import inf
from weakref import WeakValueDictionary

from gateway.core.clock import about
from gateway.core.errors import Busy

RETRY_SECONDS = 2.0
"""Most bodies are let go within the time to a first token."""


class Account:
    """What the bodies of one caller hold: `held`, of `most`."""

    __slots__ = ("__weakref__", "held", "most")

    def __init__(self, most: float) -> None:
        self.held = 0
        self.most = most


class BodyBudget:
    """Bytes that bodies may still take, of `limit_bytes`. `chance` spreads the waits of those who are refused."""

    __slots__ = ("_accounts", "_chance", "anybody", "left", "limit_bytes")

    def __init__(self, limit_bytes: int, chance: Callable[[], float] = lambda: 0.5) -> None:
        self.limit_bytes = self.left = limit_bytes
        self._chance = chance
        self._accounts: WeakValueDictionary[str, Account] = WeakValueDictionary()
        self.anybody = Account(inf)
        """Of bodies of which nobody tells whose they are: bounded by the budget alone."""

    @property
    def held(self) -> int:
        """Bytes that bodies take now."""
        return self.limit_bytes - self.left

    def account_of(self, caller: str) -> Account:
        """One for each caller, for as long as somebody holds it: all of its bodies are to be counted there."""
        account = self._accounts.get(caller)
        if account is None:
            account = self._accounts[caller] = Account(self.limit_bytes // 2)
        return account

    def take(self, count: int, account: Account, has: int = 0) -> bool:
        """Take so many bytes more, if there are as many; to be given back. `account`: whose they are. `has`: what this
        body has already."""
        left, held = self.left - count, account.held
        if left < 0 or (held > has and count and held + count > account.most):
            return False
        account.held = held + count
        self.left = left
        return True

    def give_back(self, count: int, account: Account) -> None:
        """They are free again."""
        account.held -= count
        self.left += count

    def refusal(self) -> Busy:
        """What is said to who does not fit."""
        return Busy(
            "this replica holds as many request bodies as its memory allows: send it again",
            retry_after_seconds=about(RETRY_SECONDS, self._chance),
        )


class Share:
    """What one body has of a budget."""

    __slots__ = ("_budget", "_held")

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._held = 0

    def grow(self, count: int) -> None:
        """So many bytes more have come.

        Raises `Busy`.
        """
        if not self._budget.take(count, self._budget.anybody):
            raise self._budget.refusal()
        self._held += count

    def release(self) -> None:
        """The body was let go; a second time is nothing."""
        self._budget.give_back(self._held, self._budget.anybody)
        self._held = 0
