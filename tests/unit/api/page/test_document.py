"""The status page says what the JSON says, in order, bounded, and as text whatever the names are."""

import re
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gateway.api import page as module
from gateway.api.page.docs import docs_page
from gateway.api.page.document import HEADERS, SCRIPT, STYLE, page, page_parts
from gateway.api.page.parts import Group, Part, changes
from gateway.api.status import status_of
from tests.saying import EVIL, TS, event_said, pod_said, pool_said, request_said, said, tenant_said
from tests.seeing import seen

VOID = {"meta", "link", "img", "br"}


class Read(HTMLParser):
    """A page as a browser reads it: its elements in order, and the text of each; complains of what is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[list[str]] = []
        self._open: list[int] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        self.elements.append((tag, dict(attrs)))
        self.texts.append([])
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in [self.elements[at][0] for at in self._open], f"<{tag}/> is no HTML"
        self.elements.append((tag, dict(attrs)))
        self.texts.append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for at in self._open:
            self.texts[at].append(data)

    def all(self, tag: str, **attributes: str) -> list[str]:
        """The texts of the elements with this tag and these attributes."""
        return [
            " ".join("".join(text).split())
            for (found, has), text in zip(self.elements, self.texts, strict=True)
            if found == tag and attributes.items() <= has.items()
        ]

    def ids(self) -> list[str]:
        return [has["id"] or "" for _, has in self.elements if "id" in has]


def ids(parts: tuple[Part, ...]) -> Iterator[str]:
    for part in parts:
        yield part.id
        if isinstance(part, Group):
            yield from ids(part.parts)


def many(**more: Any) -> dict[str, Any]:
    """A gateway with more of everything than a page takes."""
    pods = [pod_said(f"chat-{at}") for at in range(300)] + [pod_said("last", state="ejected", reason="it fails")]
    return said(
        pods=pods,
        tenants=[tenant_said(f"t{at}", *[(f"limit {n}", 1, 2) for n in range(20)]) for at in range(60)],
        requests=[request_said(f"r-{at}") for at in range(70)],
        events=[event_said(f"chat/chat-{at}") for at in range(80)],
        **more,
    )


def evil() -> dict[str, Any]:
    """A gateway where every text from outside is more than a text."""
    pod = pod_said(EVIL, EVIL, state="ejected", reason=EVIL, models=[{"name": EVIL, "claimed_by": EVIL}])
    request = dict.fromkeys(
        ("request_id", "tenant", "operation", "model", "pool", "pod", "code", "decision", "why"), EVIL
    )
    tenant = tenant_said(EVIL, (EVIL, 1, 1))
    tenant["limits"][0]["of"] = EVIL
    return said(
        replica=EVIL,
        ready=False,
        reason=EVIL,
        config={"loaded_at": TS, "for_seconds": 1.0, "error": EVIL, "waits_for_restart": [EVIL]},
        limits={"mode": "local", "reason": EVIL, "for_seconds": 1.0},
        discovery={"mode": EVIL, "listed": True, "asked": True, "stale_seconds": 99.0},
        pools={EVIL: pool_said(models=[EVIL], ready=0, queue=1, panic=True)},
        pods=[pod],
        refused=[{"name": EVIL, "reason": EVIL, "why": EVIL}],
        models_without_pods=[EVIL],
        tenants=[tenant],
        requests=[request_said(**request)],
        events=[event_said(EVIL, text=EVIL, what=EVIL)],
    )


EACH = pytest.mark.parametrize(
    "status", [said(), many(), evil(), status_of(seen())], ids=["usual", "many", "evil", "seen"]
)


@EACH
def test_the_page_is_whole_and_its_ids_are_its_own(status: dict[str, Any]) -> None:
    read = Read(page(status))
    assert len(read.ids()) == len(set(read.ids()))
    assert set(ids(page_parts(status))) <= set(read.ids())


@EACH
def test_what_is_sent_alone_is_what_stands_on_the_page(status: dict[str, Any]) -> None:
    html = page(status)
    # Without ages: they are written by whoever shows the page.
    bare = re.sub(r"(<time data-age [^>]*>)[^<]*", r"\1", html)
    assert all(part.html in bare for part in page_parts(status))
    for part in page_parts(status):
        for part_id, change in changes(None, part):
            alone = Read(change if isinstance(change, str) else change[0])
            assert alone.elements[0][1]["id"] == part_id


def test_every_text_from_outside_stays_text() -> None:
    html = page(evil())
    read = Read(html)
    assert "<img" not in html
    assert not any(tag == "img" or "onerror" in has for tag, has in read.elements)
    assert html.count("&lt;img src=x") >= 25
    (row,) = read.all("tr", **{"data-pod": EVIL})
    assert EVIL in row


@EACH
def test_nothing_on_the_page_breaks_its_policy(status: dict[str, Any]) -> None:
    for tag, has in Read(page(status)).elements:
        assert "style" not in has
        assert not any(name.startswith("on") for name in has)
        assert "src" not in has
        if tag in ("a", "link"):
            assert has["href"] in ("status.json", "docs", "data:,")


def test_the_policy_names_the_style_and_the_script_by_their_hashes() -> None:
    html, policy = page(said()), HEADERS["content-security-policy"]
    for tag, source in (("style", STYLE), ("script", SCRIPT)):
        (inlined,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert inlined == source
        assert f"{tag}-src 'sha256-{b64encode(sha256(source.encode()).digest()).decode()}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert {"base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"} <= set(policy.split("; "))


def test_headings_tables_and_meters_are_named_for_who_does_not_see_them() -> None:
    read = Read(page(said()))
    levels = [int(tag[1]) for tag, _ in read.elements if re.fullmatch("h[1-6]", tag)]
    assert levels == [1, *[2] * (len(levels) - 1)]
    tables = [has["id"] or "" for tag, has in read.elements if tag == "table"]
    assert tables == ["pods", "tenants", "events", "requests"]
    assert len(read.all("caption")) == len(tables)
    assert all(has["scope"] in ("col", "row", "rowgroup") for tag, has in read.elements if tag == "th")
    assert [has["aria-label"] for _, has in read.elements if has.get("role") == "meter"] == ["KV cache of chat-0"]
    assert all(has["aria-hidden"] == "true" for tag, has in read.elements if tag == "svg")
    assert len([tag for tag, has in read.elements if has.get("role") == "status"]) == 2


def test_the_page_needs_no_script() -> None:
    html = page(said())
    assert re.search(r'<head>.*<noscript><meta http-equiv="refresh" content="5"></noscript>.*</head>', html, re.DOTALL)
    (row,) = Read(html).all("tr", **{"data-pod": "chat-0"})
    assert row.startswith("chat-0ready 3m 20s")


def test_a_pods_row_says_how_it_is() -> None:
    pod = pod_said("chat-0", state="ejected", reason="it fails; back in 3 s", failed=3)
    read = Read(page(said(pods=[pod])))
    assert read.all("tr", **{"data-pod": "chat-0", "data-state": "ejected"}) == [
        "chat-0ejected 3m 20sit fails; back in 3 s14 / 12812143%76 ms52%3520"
    ]
    assert "ejected" in read.all("span", **{"class": "dot ejected"})


def test_what_is_not_known_is_not_zero() -> None:
    load = {"in_flight": None, "running": None, "waiting": None, "kv_usage": None}
    pod = pod_said(
        "chat-0", load=load, ttft_ms=None, max_in_flight=None, since=None, share=0.0, in_flight=0, attempts=0
    )
    assert Read(page(said(pods=[pod]))).all("tr", **{"data-pod": "chat-0"}) == ["chat-0ready 0––––0%00"]


def test_a_model_that_another_pool_has_is_told_at_the_pod() -> None:
    pod = pod_said("chat-0", models=[{"name": "base", "claimed_by": "lora"}])
    assert "base is pool lora's" in Read(page(said(pods=[pod]))).all("tr", **{"data-pod": "chat-0"})[0]


def test_sick_pods_come_first_in_their_pool() -> None:
    states = ("ready", "asleep", "draining", "starting", "ejected")
    pods = [pod_said(state, pool, state=state) for pool in ("a", "b") for state in states]
    html = page(said(pools={"a": pool_said(), "b": pool_said()}, pods=pods))
    assert re.findall(r'data-pod="(\w+)"', html) == [*reversed(states), *reversed(states)]


def test_pods_of_one_name_have_rows_of_their_own() -> None:
    read = Read(page(said(pods=[pod_said("chat-0"), pod_said("chat-0", state="draining")])))
    assert len(read.all("tr", **{"data-pod": "chat-0"})) == 2
    assert len(read.ids()) == len(set(read.ids()))


def test_a_page_is_bounded_and_says_what_it_leaves_out() -> None:
    read = Read(page(many(pools={f"p{at}": pool_said() for at in range(60)} | {"chat": pool_said()})))
    assert len(read.all("tr", **{"class": "pool"})) == 50
    assert "and 11 more pools, in the JSON." in read.all("td", colspan="20")
    read = Read(page(many()))
    assert len([has for tag, has in read.elements if "data-pod" in has]) == 200
    assert read.all("td", colspan="20") == [
        "and 101 more pods, in the JSON.",
        "and 10 more tenants, in the JSON.",
        "and 30 more events, in the JSON.",
        "and 20 more requests, in the JSON.",
    ]
    assert len(read.all("tr", **{"data-pod": "last"})) == 1
    assert read.all("li").count("and 12 more") == 50
    many_sick = [pod_said(f"chat-{at}", state="ejected", reason="it fails") for at in range(30)]
    assert "and 10 more" in Read(page(said(pods=many_sick))).all("li")


def test_a_thousand_pods_are_no_larger_page_than_two_hundred() -> None:
    pods = [pod_said(f"chat-{at:04}") for at in range(1000)]
    assert len(page(said(pods=pods))) < 1.01 * len(page(said(pods=pods[:201])))


def test_a_tenant_is_shown_against_its_limits() -> None:
    tenant = tenant_said("acme", ("requests per minute", 600, 600), ("tokens per minute", 1, 1000000), refused=12)
    read = Read(page(said(tenants=[tenant])))
    assert read.all("li")[-2:] == [
        "requests per minute key a1b2c3d4used up 600 / 600",
        "tokens per minute key a1b2c3d41 / 1,000,000",
    ]
    assert read.all("span", **{"class": "warning"}) == ["12"]


@pytest.mark.parametrize(
    ("more", "summary"),
    [
        ({}, "prefix"),
        ({"attempts": 2}, "prefix, 2 attempts"),
        ({"decision": "", "code": "rate_limit_exceeded", "attempts": 0}, "rate_limit_exceeded"),
        ({"decision": "", "attempts": 0}, "not sent to a pod"),
    ],
)
def test_a_request_says_where_it_went_and_why(more: dict[str, Any], summary: str) -> None:
    read = Read(page(said(requests=[request_said("r-1", **more)])))
    assert read.all("summary") == [summary]
    assert "prompts that begin like this one go there" in read.all("details")[0]
    assert "r-1" in read.all("code")


def test_a_request_without_a_count_of_tokens_has_none() -> None:
    untold = request_said("r-1", prompt_tokens=None, completion_tokens=None)
    assert "+" not in "".join(Read(page(said(requests=[untold]))).all("td", **{"data-label": "Tokens"}))
    told = request_said("r-1", prompt_tokens=34, completion_tokens=10)
    assert Read(page(said(requests=[told]))).all("td", **{"data-label": "Tokens"})[-1] == "34 + 10"


def test_a_request_stays_the_same_row_when_its_time_is_rounded_otherwise() -> None:
    # It is reckoned anew from two clocks with each look, and a row of another id would close what a reader has opened.
    before, after = (
        tuple(ids(page_parts(said(requests=[request_said("r-1", ts=f"2025-12-31T23:59:58.{ms}Z")]))))
        for ms in ("319", "320")
    )
    assert before == after


@pytest.mark.parametrize(
    ("outcome", "level"),
    [
        ("completed", "ready"),
        ("client_left", "info"),
        ("refused", "warning"),
        ("truncated", "error"),
        ("internal", "error"),
    ],
)
def test_how_a_request_ended_is_told_by_word_and_colour(outcome: str, level: str) -> None:
    read = Read(page(said(requests=[request_said("r-1", outcome=outcome, status=599)])))
    assert read.all("span", **{"class": f"dot {level}"}).count("599") == 1
    assert outcome.replace("_", " ") in read.all("small")


def test_what_needs_an_eye_comes_first_and_in_the_title() -> None:
    html = page(said(pods=[pod_said("chat-0", state="ejected", reason="it fails")], refused=[]))
    assert html.index("Pod chat-0 of pool chat is ejected") < html.index("The last minute")
    read = Read(html)
    assert read.all("title") == ["(1) Poolgate poolgate-1"]
    assert read.all("p", id="eye-count") == ["One thing."]
    assert "Runbook: PoolgatePodEjected" in read.all("ul", id="eye")[0]
    calm = Read(page(said()))
    assert calm.all("title") == ["Poolgate poolgate-1"]
    assert calm.all("p", id="eye-count") == ["Nothing: all is well."]


def test_where_there_is_nothing_the_page_says_so() -> None:
    read = Read(page(said(pools={}, pods=[], tenants=[], requests=[], events=[])))
    assert read.all("td") == [
        "No pool has shown up yet.",
        "No tenant has asked for anything yet.",
        "Nothing has happened yet.",
        "No request has ended yet.",
    ]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            {"discovery": {"mode": "kubernetes", "listed": True, "stale_seconds": 40.0}},
            "kubernetes, nothing heard for 40s",
        ),
        ({"discovery": {"mode": "kubernetes", "listed": False, "stale_seconds": 0.0}}, "kubernetes, no list yet"),
        ({"discovery": {"mode": "static", "listed": True, "stale_seconds": 0.0}}, "static, up to date"),
        ({"limits": {"mode": "redis", "reason": "", "for_seconds": 1.0}}, "in Redis, for all replicas"),
        ({"config": {"loaded_at": TS, "error": "x", "waits_for_restart": []}}, "a file is refused: see above"),
    ],
)
def test_the_gateway_says_what_it_goes_by(more: dict[str, Any], words: str) -> None:
    assert words in Read(page(said(**more))).all("dd")


def test_a_second_later_nothing_is_sent_for_what_is_only_older() -> None:
    later = said(ts="2026-01-01T00:00:01Z", uptime_seconds=301.0, pods=[pod_said("chat-0", for_seconds=201.0)])
    for old, new in zip(page_parts(said()), page_parts(later), strict=True):
        assert not list(changes(old, new))


def test_one_pods_change_is_one_row() -> None:
    old, new = (said(pods=[pod_said("a"), pod_said("b", in_flight=n)]) for n in (14, 15))
    found = dict(
        change for one, two in zip(page_parts(old), page_parts(new), strict=True) for change in changes(one, two)
    )
    assert len(found) == 1
    assert 'data-pod="b"' in str(*found.values())


def test_a_row_that_turns_sick_moves_up_and_is_sent_alone() -> None:
    old = said(pods=[pod_said("a"), pod_said("b")])
    new = said(pods=[pod_said("a"), pod_said("b", state="ejected", reason="it fails")])
    found = dict(
        change
        for one, two in zip(page_parts(old), page_parts(new), strict=True)
        if one.id == "pods"
        for change in changes(one, two)
    )
    order, row = found.values()
    assert isinstance(order, list)
    assert isinstance(row, str)
    assert 'data-pod="b"' in row


def test_the_script_is_small_and_puts_in_only_what_the_server_made() -> None:
    assert len(SCRIPT.splitlines()) < 100
    assert SCRIPT.count("innerHTML") == 1
    assert "eval" not in SCRIPT
    assert "</script" not in SCRIPT
    assert "</style" not in STYLE
    assert "url(" not in STYLE
    assert "@import" not in STYLE


def test_style_and_script_stand_beside_the_module() -> None:
    folder = Path(module.__file__).parent
    assert (folder / "page.css").is_file()
    assert (folder / "page.js").is_file()


def test_the_page_of_routes_shows_code_as_code_and_text_as_text() -> None:
    html = docs_page({"/<x>": {"get": {"description": "`ok` & more <b>"}}})
    read = Read(html)
    assert read.all("td") == ["ok & more <b>"]
    assert read.all("code") == ["GET /<x>", "ok"]
    assert "<script" not in html
