"""What is read off a request for the choice of its pod, by the pool's policy."""

import json
from typing import Any

import pytest

from gateway.balancing.affinity import BLOCK_BYTES, KEY_BYTES, beginning_key, blocks_of, session_key
from gateway.balancing.policy import Wish
from gateway.core.call import Call, Trail
from gateway.core.caller import Tenant
from gateway.core.fleet import Pod, PodState, Policy, Pool, Route
from gateway.pipeline.checks import GUARDED_FIELDS
from gateway.pipeline.exchange import Head
from gateway.pipeline.intake import call_of, look
from gateway.pipeline.operations import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES_API, Operation
from gateway.pipeline.reception import Visit
from gateway.pipeline.wish import wish_of

LONG = "once upon a time " * 100
ALL_FIELDS = frozenset(GUARDED_FIELDS)


def route_of(policy: Policy, pods: int = 2, model: str = "m") -> Route:
    ready = tuple(Pod(f"u{number}", f"pod-{number}", "p", "h", 1, PodState.READY) for number in range(pods))
    return Route(model, Pool("p", policy=policy), ready)


def visit_of(headers: dict[str, str] | None = None, key_id: str = "key", operation: Operation = CHAT) -> Visit:
    fields = {name.encode(): value.encode("latin-1") for name, value in (headers or {}).items()}
    visit = Visit(Head(b"POST", b"/", fields, frozenset(), 0.0), Trail("id", 0.0))
    visit.operation = operation
    visit.tenant = Tenant(key_id, "team", allow_fields=ALL_FIELDS)
    return visit


def raw(value: Any) -> bytes:
    return json.dumps(value).encode()


def wish(
    route: Route | None,
    fields: dict[str, Any] | None = None,
    *,
    headers: dict[str, str] | None = None,
    operation: Operation = CHAT,
    key_id: str = "key",
) -> Wish:
    """Of a request with these fields."""
    visit = visit_of(headers, key_id, operation)
    seen = look(raw({"model": "m", **(fields or CHAT_FIELDS)}), operation)
    return wish_of(route, call_of(seen, operation, visit.tenant), seen, visit)


CHAT_FIELDS = {"messages": [{"role": "user", "content": LONG}]}
PROMPT = raw(CHAT_FIELDS["messages"])
TOKENS = wish(None).tokens


class TestPolicies:
    def test_the_prompt_is_estimated_for_every_policy(self) -> None:
        assert TOKENS > 400
        for policy in ("auto", "least", "p2c", "round_robin", "session", "prefix"):
            assert wish(route_of(policy)).tokens == TOKENS

    @pytest.mark.parametrize("policy", ["least", "p2c", "round_robin"])
    def test_policies_that_count_read_nothing_else(self, policy: Policy) -> None:
        assert wish(route_of(policy), headers={"x-session-id": "s"}) == Wish(TOKENS)

    def test_auto_reads_the_prompts_blocks_and_what_it_belongs_to(self) -> None:
        told = wish(route_of("auto"))
        assert told.blocks == blocks_of(PROMPT, ("m", b""))
        assert len(told.blocks) == len(PROMPT) // BLOCK_BYTES
        assert told.key == wish(route_of("session")).key
        headers = {"x-session-id": "s"}
        assert wish(route_of("auto"), headers=headers) == told._replace(key=session_key("key", "s"))

    def test_auto_reads_nothing_where_nothing_can_be_cached(self) -> None:
        at_most = "x" * (BLOCK_BYTES - len(raw([{"role": "user", "content": ""}])))
        for text, blocks in ((at_most[1:], 0), (at_most, 1)):
            told = wish(route_of("auto"), {"messages": [{"role": "user", "content": text}]})
            assert (len(told.blocks), bool(told.key)) == (blocks, bool(blocks))
        # Embeddings have no KV cache to share.
        told = wish(route_of("auto"), {"input": LONG}, operation=EMBEDDINGS, headers={"x-session-id": "s"})
        assert told == Wish(told.tokens)

    def test_prefix_reads_the_prompts_beginning_whatever_the_session(self) -> None:
        told = wish(route_of("prefix"), headers={"x-session-id": "s"})
        assert told == Wish(TOKENS, key=beginning_key(PROMPT[:KEY_BYTES], ("m", b"")))
        assert told.key

    def test_session_reads_the_prompts_beginning_where_no_session_is_named(self) -> None:
        assert wish(route_of("session")) == wish(route_of("prefix"))
        assert wish(route_of("session")).blocks == ()
        short: dict[str, Any] = {"messages": []}
        assert wish(route_of("session"), short) == wish(route_of("prefix"), short)

    @pytest.mark.parametrize("policy", ["auto", "session", "prefix"])
    def test_where_there_is_no_choice_nothing_is_read(self, policy: Policy) -> None:
        for route in (None, route_of(policy, pods=0), route_of(policy, pods=1)):
            assert wish(route, headers={"x-session-id": "s"}) == Wish(TOKENS)

    @pytest.mark.parametrize("policy", ["auto", "session", "prefix"])
    def test_a_form_shares_nothing_with_another(self, policy: Policy) -> None:
        call = Call("m", False, False, 1, [b"sound"], 5, b"multipart/form-data; boundary=x", 77)
        assert wish_of(route_of(policy), call, None, visit_of({"x-session-id": "s"})) == Wish(77)


class TestSessions:
    @pytest.mark.parametrize(
        ("headers", "named"),
        [
            ({"x-session-id": "one"}, "one"),
            ({"x-openwebui-chat-id": "two"}, "two"),
            ({"x-session-id": "one", "x-openwebui-chat-id": "two"}, "one"),
            ({"x-openwebui-chat-id": "two", "x-session-id": "one"}, "one"),
            ({"x-session-id": "", "x-openwebui-chat-id": "two"}, "two"),
            ({"x-session-id": "sch\u00f6n"}, "sch\u00f6n"),
        ],
    )
    def test_what_the_headers_name_is_the_session(self, headers: dict[str, str], named: str) -> None:
        for fields in (CHAT_FIELDS, {**CHAT_FIELDS, "prompt_cache_key": "three"}):
            told = wish(route_of("session"), fields, headers=headers)
            assert told == Wish(told.tokens, key=session_key("key", named))

    def test_the_body_may_name_it_too(self) -> None:
        fields = {**CHAT_FIELDS, "prompt_cache_key": "three"}
        keys = {wish(route_of("session"), fields, headers=headers).key for headers in ({}, {"x-session-id": ""})}
        assert keys == {session_key("key", '"three"')}

    @pytest.mark.parametrize("empty", [None, ""])
    def test_an_empty_name_in_the_body_is_none(self, empty: str | None) -> None:
        fields = {**CHAT_FIELDS, "prompt_cache_key": empty}
        assert wish(route_of("session"), fields).key == wish(route_of("session")).key

    def test_one_callers_session_is_never_anothers(self) -> None:
        one, other = (wish(route_of("session"), headers={"x-session-id": "s"}, key_id=name) for name in ("a", "b"))
        assert one.key != other.key

    def test_two_prompts_of_one_session_go_together(self) -> None:
        one, other = (
            wish(route_of("session"), {"messages": [{"role": "user", "content": text}]}, headers={"x-session-id": "s"})
            for text in ("first", "second")
        )
        assert one.key == other.key != 0


class TestConversations:
    """Without a session's name, a conversation is told by what stands before its first answer."""

    def key(self, *turns: tuple[str, str], system: str = "") -> int:
        messages = [{"role": role, "content": content} for role, content in turns]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        return wish(route_of("session"), {"messages": messages}).key

    def test_its_further_turns_belong_together(self) -> None:
        turns = [
            ("user", "Hello"),
            ("assistant", "Hi"),
            ("user", "What is Go?"),
            ("assistant", "A game"),
            ("user", "?"),
        ]
        assert self.key(*turns[:3]) == self.key(*turns)

    def test_another_one_is_another_however_long_what_both_begin_with(self) -> None:
        keys = {self.key(("user", asked), ("assistant", "Hi"), ("user", "?"), system=LONG) for asked in ("one", "two")}
        assert len(keys) == 2
        assert self.key(("user", "one"), system=LONG) == self.key(("user", "two"), system=LONG)

    def test_what_a_message_says_of_answers_is_none(self) -> None:
        asked = [("user", f'what does {{"role":"assistant"}} mean, {which}? ' + LONG) for which in ("one", "two")]
        one, other = (self.key(turn, system=LONG) for turn in asked)
        assert one == other == wish(route_of("prefix"), {"messages": [{"role": "system", "content": LONG}]}).key


class TestPrompts:
    @pytest.mark.parametrize("policy", ["auto", "prefix"])
    def test_tools_and_system_prompt_come_first_as_in_a_chat_template(self, policy: Policy) -> None:
        tools, system = [{"name": "t", "description": LONG}], LONG.upper()
        fields = {**CHAT_FIELDS, "system": system, "tools": tools}
        prompt = raw(tools) + raw(system) + PROMPT
        told = wish(route_of(policy), fields, operation=MESSAGES)
        assert told.blocks == (blocks_of(prompt, ("m", b"")) if policy == "auto" else ())
        assert told.key == (beginning_key(prompt[:KEY_BYTES], ("m", b"")) if policy == "prefix" else told.key)

    @pytest.mark.parametrize(
        ("fields", "operation", "prompt"),
        [
            ({"prompt": LONG}, COMPLETIONS, raw(LONG)),
            ({"input": LONG, "instructions": "be brief"}, RESPONSES_API, raw("be brief") + raw(LONG)),
        ],
    )
    def test_each_operations_prompt_is_read(self, fields: dict[str, Any], operation: Operation, prompt: bytes) -> None:
        assert wish(route_of("auto"), fields, operation=operation).blocks == blocks_of(prompt, ("m", b""))

    @pytest.mark.parametrize("policy", ["auto", "prefix"])
    def test_models_and_salts_keep_prompts_apart_that_read_alike(self, policy: Policy) -> None:
        salted = [{**CHAT_FIELDS, "cache_salt": salt} for salt in ("one", "two")]
        told = [
            wish(route_of(policy)),
            wish(route_of(policy, model="adapter")),
            *(wish(route_of(policy), fields) for fields in salted),
        ]
        assert len({(each.blocks[:1], each.key) for each in told}) == 4

    @pytest.mark.parametrize("policy", ["auto", "prefix"])
    def test_two_names_of_a_model_share_what_it_has_cached(self, policy: Policy) -> None:
        """An alias is not the model: the route is."""
        by_alias, by_name = (wish(route_of(policy), {"model": name, **CHAT_FIELDS}) for name in ("alias", "m"))
        assert (by_alias.blocks, by_alias.key) == (by_name.blocks, by_name.key)

    def test_callers_share_what_is_cached(self) -> None:
        one, other = (wish(route_of("auto"), key_id=name) for name in ("a", "b"))
        assert one.blocks == other.blocks
