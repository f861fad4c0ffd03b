"""JSON that means one thing: what the byte tests conclude agrees with a parser that looks at every token."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.call import Call
from gateway.core.caller import ANONYMOUS
from gateway.core.errors import InvalidJson, PoolgateError
from gateway.pipeline.body import (
    MAX_CONTAINERS,
    MAX_NESTING,
    asking_for_usage,
    first_repeated,
    hollow,
    in_place,
    may_nest_deeply,
    members,
    members_of,
    nesting,
    places_of,
)
from gateway.pipeline.checks import CHECKS
from gateway.pipeline.intake import call_of, look, renamed
from gateway.pipeline.operations import CHAT

keys = st.one_of(
    st.sampled_from(["model", "stream", "stream_options", "messages", "n", "a", 'q"uote', "back\\slash", "é"]),
    st.text(max_size=5),
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.text(max_size=8), st.sampled_from(["model", "stream"])
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=12,
)
spaces = st.sampled_from(["", " ", "\n\t ", "\r\n"])


@st.composite
def objects(draw: st.DrawFn) -> tuple[bytes, list[tuple[str, Any]]]:
    """(an object's JSON, its members in order), duplicates and odd spacing among them."""
    pairs = draw(st.lists(st.tuples(keys, values), max_size=6))
    ascii_only = draw(st.booleans())
    parts = []
    for key, value in pairs:
        name = json.dumps(key, ensure_ascii=ascii_only)
        if key in ("model", "stream") and draw(st.integers(0, 9)) == 0:
            name = '"' + "".join(f"\\u{ord(letter):04x}" for letter in key) + '"'
        text = json.dumps(value, ensure_ascii=ascii_only, indent=draw(st.sampled_from([None, 1])))
        parts.append(f"{draw(spaces)}{name}{draw(spaces)}:{draw(spaces)}{text}{draw(spaces)}")
    raw = f"{draw(spaces)}{{{','.join(parts)}{draw(spaces) if not parts else ''}}}{draw(spaces)}"
    return raw.encode("utf-8", "surrogatepass"), pairs


def no_surrogates(pairs: list[tuple[str, Any]]) -> bool:
    try:
        json.dumps(pairs, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@settings(max_examples=400)
@given(objects())
def test_the_walk_finds_the_members_that_a_parser_finds(made: tuple[bytes, list[tuple[str, Any]]]) -> None:
    raw, pairs = made
    if not no_surrogates(pairs):
        return
    found = members(raw)
    assert [(m.key, json.loads(raw[m.value_start : m.value_end])) for m in found] == pairs
    for member in found:
        assert json.loads(b"{" + raw[member.start : member.value_end] + b"}") == {
            member.key: json.loads(raw[member.value_start : member.value_end])
        }


def decoded(raw: bytes) -> dict[str, bytes]:
    """The members as intake's decoder gives them."""
    return dict(msgspec.json.decode(raw, type=dict[str, msgspec.Raw]))


@settings(max_examples=600)
@given(objects())
def test_a_key_that_stands_twice_is_found_and_no_other(made: tuple[bytes, list[tuple[str, Any]]]) -> None:
    raw, pairs = made
    if not no_surrogates(pairs):
        return
    names = [key for key, _ in pairs]
    twice = first_repeated(raw, decoded(raw))
    if twice is None:
        assert len(set(names)) == len(names)
        assert members_of(raw, decoded(raw)) == members(raw)
    else:
        assert names.count(twice) > 1


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,", ":")])
@settings(max_examples=200)
@given(st.lists(st.tuples(keys, values), max_size=5), st.integers(0, 4), st.integers(0, 12))
def test_no_padding_hides_a_second_member(
    separators: tuple[str, str], pairs: list[tuple[str, Any]], which: int, blanks: int
) -> None:
    """However its length is made to come out: the text could be any of the plain ways of writing it, by its size."""
    if not pairs or not no_surrogates(pairs):
        return
    between, behind = separators
    again = [*pairs, pairs[which % len(pairs)]]
    inside = between.join(f"{json.dumps(key)}{behind}{json.dumps(value)}" for key, value in again)
    raw = f"{{{inside}{' ' * blanks}}}".encode()
    assert first_repeated(raw, decoded(raw)) is not None


@pytest.mark.parametrize("blanks", range(20))
def test_a_second_member_of_just_the_length_of_the_usual_spaces_is_found(blanks: int) -> None:
    """With one of these numbers of blanks the text is as long as Python would write its eight members."""
    pairs = [(letter, "1") for letter in "abcdefgh"]
    raw = ("{" + ",".join(f'"{key}":{value}' for key, value in [*pairs, ("c", "1")]) + " " * blanks + "}").encode()
    assert first_repeated(raw, decoded(raw)) == "c"
    assert len(raw) - len(json.dumps(dict.fromkeys("abcdefgh", 1))) == blanks - 9


@settings(max_examples=300)
@given(objects(), st.text(max_size=30))
def test_leaving_out_a_top_level_value_hides_no_key(made: tuple[bytes, list[tuple[str, Any]]], text: str) -> None:
    raw, pairs = made
    if not no_surrogates(pairs):
        return
    names = [member.key for member in members(raw)]
    for name, value in decoded(raw).items():
        if name.isascii() and name.isalpha():
            assert [member.key for member in members(hollow(raw, name, bytes(value)))] == names


@settings(max_examples=300)
@given(values)
def test_nesting_is_exact_up_to_its_bound(value: Any) -> None:
    def depth(inner: Any) -> int:
        if isinstance(inner, dict):
            return 1 + max((depth(below) for below in inner.values()), default=0)
        if isinstance(inner, list):
            return 1 + max((depth(below) for below in inner), default=0)
        return 0

    assert nesting(json.dumps(value).encode("utf-8", "surrogatepass")) == min(depth(value), MAX_NESTING + 1)


@given(
    brackets=st.lists(st.sampled_from("{["), min_size=MAX_NESTING - 3, max_size=MAX_NESTING + 3),
    long=st.booleans(),
    together=st.booleans(),
)
def test_what_may_nest_deeply_has_more_brackets_than_it_may_have_levels(
    brackets: list[str], long: bool, together: bool
) -> None:
    between = "x" * (1000 if long else 1)
    text = ("".join(brackets) + between * len(brackets) if together else between.join(brackets)).encode()
    assert may_nest_deeply(text) == (len(brackets) > MAX_NESTING)


def test_nesting_is_not_fooled_by_brackets_in_strings() -> None:
    text = json.dumps({"a": "[" * 500 + '\\"{' * 100, "b": ["]" * 50 + "\\"]}).encode()
    assert nesting(text) == 2
    assert nesting(b"[" * 65 + b"]" * 65) == MAX_NESTING + 1
    assert nesting(b"[" * 64 + b"]" * 64) == MAX_NESTING


@settings(max_examples=300)
@given(
    st.dictionaries(st.sampled_from(["a", "temperature", "user", "x"]), values, max_size=4),
    st.one_of(
        st.none(),
        st.dictionaries(
            st.sampled_from(["include_usage", "continuous_usage_stats", "other"]), st.booleans(), max_size=3
        ),
    ),
    st.booleans(),
)
def test_the_one_edit_asks_for_usage_and_changes_nothing_else(
    more: dict[str, Any], options: dict[str, bool] | None, present: bool
) -> None:
    body = {"model": "m", "stream": True, **more}
    if present:
        body["stream_options"] = options
    raw = json.dumps(body, indent=1).encode("utf-8", "surrogatepass")
    try:
        call = call_of(look(raw, CHAT), CHAT, ANONYMOUS)
    except PoolgateError:
        return
    sent = json.loads(b"".join(call.body))
    assert len(b"".join(call.body)) == call.body_length
    wanted = bool(present and options and options.get("include_usage"))
    assert call.wants_usage is wanted
    if wanted:
        assert b"".join(call.body) == raw
        return
    assert sent.pop("stream_options") == {
        **({"other": options["other"]} if present and options and "other" in options else {}),
        "include_usage": True,
    }
    body.pop("stream_options", None)
    assert sent == json.loads(json.dumps(body))


READ = frozenset(("model", "stream", "stream_options", *CHECKS))
named = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12)


@st.composite
def chats(draw: st.DrawFn) -> tuple[bytes, str]:
    """(a body with one `model`, its name), as intake accepts them: the key in disguise, and much that looks like it."""
    name = draw(named)
    lures = st.sampled_from(["model", 'a"model', "mod\\u0065l", '"model":', f'"model":"{name}"', name])
    inner = st.recursive(
        st.one_of(lures, scalars),
        lambda below: st.one_of(
            st.lists(below, max_size=3), st.dictionaries(st.one_of(lures, keys), st.one_of(below, st.just(name)))
        ),
        max_leaves=8,
    )
    more = draw(st.lists(st.tuples(st.one_of(lures, st.text(max_size=4).map("_{}".format)), inner), max_size=4))
    pairs: list[tuple[str, Any]] = [pair for pair in dict(more).items() if pair[0] not in READ]
    pairs += [("stream", True), ("model", name)][draw(st.integers(0, 1)) :]
    parts = []
    for key, value in draw(st.permutations(pairs)):
        shown, text = (json.dumps(each, ensure_ascii=draw(st.booleans())) for each in (key, value))
        if draw(st.integers(0, 4)) == 0 and key == "model":
            shown = '"mod\\u0065l"'
        if draw(st.integers(0, 4)) == 0 and value == name:
            text = '"' + "".join(f"\\u{ord(unit):04X}" for unit in utf16_units(name)) + '"'
        parts.append(f"{draw(spaces)}{shown}{draw(spaces)}:{draw(spaces)}{text}{draw(spaces)}")
    return f"{draw(spaces)}{{{','.join(parts)}}}{draw(spaces)}".encode("utf-8", "surrogatepass"), name


def utf16_units(text: str) -> str:
    """The text with surrogate pairs for what lies beyond 16 bits, as JSON's escapes write it."""
    units = text.encode("utf-16-be")
    return "".join(chr(int.from_bytes(units[at : at + 2])) for at in range(0, len(units), 2))


def called(raw: bytes) -> Call:
    return call_of(look(raw, CHAT), CHAT, ANONYMOUS)


@settings(max_examples=400)
@given(chats(), named, named)
def test_another_model_in_the_body_changes_its_name_and_no_other_byte(
    made: tuple[bytes, str], other: str, third: str
) -> None:
    raw, name = made
    call = called(raw)
    before, given = b"".join(call.body), call.body
    other_call = renamed(call, other)
    if other == name:
        assert other_call is call
        return
    assert other_call.model == other
    after = b"".join(other_call.body)
    assert len(after) == other_call.body_length
    (at,) = [member for member in members(before) if member.key == "model"]
    assert after == before[: at.value_start] + json.dumps(other).encode() + before[at.value_end :]
    assert json.loads(after) == json.loads(before) | {"model": other}
    # The body changed hands: whoever holds the first call keeps no second copy of it alive.
    assert given == []
    # And once more, as for a fallback: back to the name it had, or on to a third.
    for last in (name, third):
        assert json.loads(b"".join(renamed(called(after), last).body)) == json.loads(after) | {"model": last}


def test_the_same_model_costs_nothing() -> None:
    call = called(b'{"model":"m"}')
    assert renamed(call, "m") is call


def test_only_so_many_objects_and_lists_are_looked_at() -> None:
    """However they nest: what each of them costs to look at is much more than what it costs to send."""
    for nest in (b"[" * 60 + b"]" * 60, b"{}", b'["]",[]]'):
        fits = MAX_CONTAINERS // (nest.count(b"[") + nest.count(b"{")) - 2
        raw = b'{"model":"m","messages":[%b]}'
        assert look(raw % b",".join([nest] * fits), CHAT).model == "m"
        with pytest.raises(InvalidJson, match=f"more than {MAX_CONTAINERS} objects and lists"):
            look(raw % b",".join([nest] * (fits + 3)), CHAT)
    # In a string they are text, however many.
    assert look(raw % (b'"' + b"[{" * MAX_CONTAINERS + b'"'), CHAT).model == "m"


def test_a_disguised_model_is_found() -> None:
    """A nested member with the very name, a key that ends alike, and the true one behind an escape."""
    raw = b'{"x":{"model":"m"},"a\\"model":"m","mod\\u0065l":"m","model2":"m"}'
    asked = in_place(raw, *places_of(raw, decoded(raw))["model"], b'"new"')
    assert b"".join(asked) == raw.replace(b'u0065l":"m"', b'u0065l":"new"')
    plain = b'{"x":{"model":"n"},"a\\"model":"n","model" :\n"m","model2":"m"}'
    asked = in_place(plain, *places_of(plain, decoded(plain))["model"], b'"new"')
    assert b"".join(asked) == plain.replace(b'\n"m"', b'\n"new"')


def test_asking_for_usage_copes_with_an_object_of_one_member_and_odd_spacing() -> None:
    assert json.loads(b"".join(asking_for_usage(b' \n{"model":"m"}', None))) == {
        "model": "m",
        "stream_options": {"include_usage": True},
    }
