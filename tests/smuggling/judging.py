"""What became of a vector, in a word."""

import asyncio
from collections.abc import Callable, Iterable, Mapping

from tests.smuggling.conversation import Said, say
from tests.smuggling.parsers import Recorded
from tests.smuggling.vectors import KEY, Vector

AT_ONCE = 12


async def tried(
    port: int, vectors: Iterable[Vector], key: bytes = KEY, at_work: Callable[[], object] = lambda: False
) -> Mapping[Vector, Said]:
    """What a server said to each, a few at a time. `at_work`: whether it is known to have something to say."""
    few = asyncio.Semaphore(AT_ONCE)

    async def one(vector: Vector) -> tuple[Vector, Said]:
        async with few:
            return vector, await say(port, vector.raw.replace(KEY, key), at_work=at_work)

    return dict(await asyncio.gather(*map(one, vectors)))


def verdict(vector: Vector, said: Said, seen: list[bytes]) -> str:
    """`one`, `refused`, `no route`; or what is less good than these. `seen`: the bodies that an application got."""
    if not seen:
        if len(said.statuses) == 1 and said.statuses[0] in (404, 405):
            return "no route"
        if len(said.statuses) > 1:
            return "two answers"
        if not said.closed:
            return "refused, open" if said.statuses else "waits"
        return "refused" if said.statuses else "closed"
    if len(seen) > 1:
        return "two"
    return "one" if seen[0] == vector.body else "one, other body"


def seen_by(recorded: Recorded) -> dict[int, list[bytes]]:
    """The bodies that came from each client, by its port."""
    found: dict[int, list[bytes]] = {}
    for port, _, body in recorded.requests():
        found.setdefault(port, []).append(body)
    return found
