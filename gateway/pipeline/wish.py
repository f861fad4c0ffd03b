"""What the choice of a pod is made by, read off a request.

Two requests share what a pod has cached as far as their prompts begin alike, so a prompt is taken in the order in which
a chat template writes it: tools and system prompt first, then the messages. Raw bytes are compared; no tokenizer.

The key names what a request belongs to: its session, if it says so. Else its conversation, which each further turn
repeats: the bytes before the first answer in it. Else all prompts that begin alike.
"""

from gateway.balancing.affinity import (
    BLOCK_BYTES,
    KEY_BYTES,
    Seed,
    beginning_key,
    blocks_of,
    session_key,
)
from gateway.balancing.policy import Wish
from gateway.core.call import Call
from gateway.core.fleet import Policy, Route
from gateway.core.made import maker
from gateway.pipeline.body import Prompt
from gateway.pipeline.intake import QUOTED_ANSWER, Look
from gateway.pipeline.reception import Visit

_SESSION_HEADERS = (b"x-openwebui-chat-id", b"x-session-id")
"""The last one that says something counts."""
_LOOKING = frozenset(("auto", "session", "prefix"))


_wish = maker(Wish)


def wish_of(route: Route | None, call: Call, seen: Look | None, visit: Visit) -> Wish:
    """What a pod for this call is chosen by. `seen` None: a form, which shares nothing with another."""
    tokens = call.prompt_tokens_estimate
    if route is None or seen is None:
        return Wish(tokens)
    policy: Policy = route.pool.policy
    # What does not generate has no cache, and what is shorter than a block shares nothing.
    if (
        (policy == "auto" and (len(seen.body) < BLOCK_BYTES or not visit.operation.streams))
        or policy not in _LOOKING
        or len(route.pods) < 2
    ):
        return _wish((tokens, (), 0))
    seed, prompt = (route.model, seen.cache_salt), seen.prompt
    if policy == "auto":
        if prompt.end - prompt.start < BLOCK_BYTES:
            return Wish(tokens)
        key = _session(seen, visit) or _conversation(prompt, seed)
        return Wish(tokens, blocks_of(prompt.text, seed, prompt.start, prompt.end), key)
    if policy == "session":
        return Wish(tokens, key=_session(seen, visit) or _conversation(prompt, seed))
    return Wish(tokens, key=beginning_key(prompt.beginning(KEY_BYTES), seed))


def _session(seen: Look, visit: Visit) -> int:
    fields, session = visit.head.fields, seen.session
    for name in _SESSION_HEADERS:
        if said := fields.get(name):
            session = said.decode("latin-1")
    return session_key(visit.tenant.key_id, session)


def _conversation(prompt: Prompt, seed: Seed) -> int:
    return beginning_key(prompt.before(QUOTED_ANSWER, KEY_BYTES), seed)
