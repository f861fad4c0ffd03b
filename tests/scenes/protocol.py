"""What stands between the lines of a request: it means one thing to everybody, or it is refused."""

import asyncio
import json
import re
import time
from collections.abc import Iterable, Mapping

from gateway.balancing.affinity import BLOCK_BYTES, blocks_of
from gateway.parts import THE_USUAL
from gateway.pipeline.forward import Forwarder, Request
from tests.fakes import answer
from tests.integration.test_header_hygiene import CANARY, FOREIGN, NOMINATED, OURS, fields_of
from tests.raw import Answer, chat, request
from tests.running import Running
from tests.scenes import says
from tests.scenes.canaries import PROMPT
from tests.scenes.defences.clients import HEAD_BOUNDS
from tests.scenes.defences.protocol import (
    ANSWERS_HEAD_IS_OURS,
    BOUNDED_LABELS,
    CHUNKS_BRING,
    ERRORS_UNQUOTED,
    FEW_HEADERS,
    FEW_REMEMBERED,
    FORGETS_PROMPTS,
    GUARDED,
    HOP_BY_HOP,
    JSON_ALONE,
    JSON_MEANS_ONE_THING,
    KEYS_BY_DIGEST,
    KEYS_FIRST,
    LINES_ESCAPED,
    LISTED_ROUTES,
    NAMES_AS_THEY_ARE,
    ONE_MEANING,
    ORIGINS_LISTED,
    OUR_HEADERS,
    RAW_PATHS,
    READ_IN_PASSES,
    READ_TWICE,
    ROUTES_ARE_LABELS,
    SAID_ONCE,
    SALT_APART,
    STRICT_PARSER,
)
from tests.scenes.promises import Promise
from tests.scenes.scene import SceneFailed, Without, expect, scene
from tests.scenes.stage import Stage
from tests.smuggling.parsers import recorder
from tests.smuggling.vectors import BODY, KEY, VECTORS, Ours, Vector

AT_ONCE = 32


async def told(stage: Stage, data: bytes) -> Answer:
    """What a client of its own is answered."""
    client = await stage.client()
    client.send(data)
    return await client.answer()


async def statuses(stage: Stage, asked: Mapping[str, bytes]) -> dict[str, int]:
    """What each is answered, some at a time; 0: nothing, or nothing whole."""
    few = asyncio.Semaphore(AT_ONCE)

    async def one(name: str, data: bytes) -> tuple[str, int]:
        async with few:
            try:
                return name, (await told(stage, data)).status
            except SceneFailed:
                return name, 0

    return dict(await asyncio.gather(*(one(*each) for each in asked.items())))


def exactly(what: str, names: Iterable[str]) -> str:
    """The failure of a scene that names all that did not hold, and nothing else."""
    return f"^{re.escape(what + '; '.join(names))}$"


BY_THE_PARSER = (
    *("TE.CL", "CL and TE that agree", "TE with a vertical tab", "TE folded", "TE folded, and CL"),
    *("space before TE's colon", "chunk size with a space behind", "chunk size with a tab behind"),
    *("chunk size ends with LF", "chunk size ends with CR", "chunk ends with LF", "no CRLF behind a chunk"),
    *("chunk extension behind a space", "last chunk with LF", "trailer Content-Length", "trailer Transfer-Encoding"),
    *("a field folded", "a space before the first field", "NUL in a value", "bare LF between fields"),
    "all lines end with LF",
)
"""Vectors that a parser with its leniencies on would take, and the gateway with it."""
BY_US = (
    *("TE identity, chunked", "TE gzip, chunked", "TE with a leading comma", "TE in HTTP/1.0"),
    *("chunk extension of 200 kB", "no Host", "two Hosts", "two Hosts, equal", "Host with a path", "Host with a user"),
    *("Host as a list", "HTTP/2.0", "no version (HTTP/0.9)", "CONNECT"),
)
"""Vectors that the strict parser takes, and its head's second reading does not."""
BY_BOTH = (
    *("TE xchunked", "TE xchunked and CL", "TE chunked, twice in two lines", "TE chunked, chunked"),
    *("TE chunked, identity", "TE identity and CL", "TE gzip", "TE in two lines, the second x", "TE quoted"),
    *("TE with a parameter", "TE with a trailing comma", "TE with 8-bit", "TE with a NUL", "HTTP/1.2"),
)
"""Vectors that each of the two refuses without the other. What is refused and stands in none of these three is beyond
the parser's grammar, for which there is no leniency."""
EXTENSIONS = ("chunk extension of 200 kB",)
TAKEN = "not as it must be: "


def in_order(*names: Iterable[str]) -> list[str]:
    wanted = {name for some in names for name in some}
    return [vector.name for vector in VECTORS if vector.name in wanted]


@scene(
    "F88",
    "A request that can be read in two ways is refused, and a pod sees what was accepted and nothing else",
    promise=Promise.FRONT_DOOR,
    without=(
        Without(STRICT_PARSER, red=exactly(TAKEN, in_order(BY_THE_PARSER))),
        Without(ONE_MEANING, red=exactly(TAKEN, in_order(BY_US))),
        Without(READ_TWICE, red=exactly(TAKEN, in_order(BY_THE_PARSER, BY_US, BY_BOTH))),
        Without(CHUNKS_BRING, red=exactly(TAKEN, EXTENSIONS)),
    ),
)
async def a_request_means_one_thing(stage: Stage) -> None:
    pod = await stage.pod()
    key = (await stage.gateway(pod)).key.encode()
    few = asyncio.Semaphore(AT_ONCE)
    became = await asyncio.gather(*(_became(stage, few, vector, key) for vector in VECTORS))
    taken = [vector.name for vector, what in zip(VECTORS, became, strict=True) if what != vector.ours]
    expect(not taken, TAKEN + "; ".join(taken))
    await stage.swept()
    expect(not any(client.has_heard for client in stage.clients), "a request was answered twice")
    bodies = [sent.partition(b"\r\n\r\n")[2] for sent in pod.requests]
    expect(bodies == [BODY] * became.count(Ours.ONE), f"the pod was asked otherwise: {set(bodies)}")


async def _became(stage: Stage, few: asyncio.Semaphore, vector: Vector, key: bytes) -> str:
    async with few:
        client = await stage.client()
        client.send(vector.raw.replace(KEY, key))
        try:
            came = await client.answer()
            if came.status in (404, 405):
                return Ours.NO_ROUTE
            if came.status != 200:
                await client.expect_close()
        except SceneFailed:
            return "waits"
        return Ours.ONE if came.status == 200 else Ours.REFUSED


@scene(
    "F88b",
    "What a pod gets is framed anew: another parser sees each request that was accepted, byte for byte, and no other",
    promise=Promise.FRONT_DOOR,
    without=(Without(FEW_HEADERS, red=r"of \d+ requests the pod has seen \d+"),),
)
async def another_parser_sees_the_same(stage: Stage) -> None:
    pod = await stage.enter(recorder("h11", stage.folder()))
    key = (await stage.gateway(pod)).key.encode()
    few = asyncio.Semaphore(AT_ONCE)
    became = await asyncio.gather(*(_became(stage, few, vector, key) for vector in VECTORS))
    accepted = sum(vector.ours is Ours.ONE for vector in VECTORS)
    seen = [body for _, _, body in pod.requests()]
    expect(len(seen) == accepted, f"of {accepted} requests the pod has seen {len(seen)}")
    expect(set(seen) == {BODY}, f"the pod has seen other bodies: {set(seen)}")
    expect(became.count(Ours.ONE) == accepted, "a caller was told otherwise")


CHAT = "/v1/chat/completions"
DISGUISED = (
    *("/v1/../v1/chat/completions", "/admin/../v1/chat/completions", "/v1/./chat/completions"),
    *("/v1/%2e%2e/v1/chat/completions", "/v1%2fchat/completions", "/v1/chat%2Fcompletions", "/%761/chat/completions"),
    *("/v1/chat/completions%00", "/v1/chat;x=y/completions", "/v1/chat/completions;x", "/v1\\chat\\completions"),
    *("/v1%5cchat/completions", "/v1%c0%afchat/completions", "/v1/chat/completions.", "/V1/chat/completions"),
    *("/v1/chat/completions/", "/v1/chat/completions/."),
)
FOUND = "leads to a route: "


@scene(
    "F90",
    "A path in disguise is no path: it is not found, and no pod is asked",
    promise=Promise.FRONT_DOOR,
    without=(Without(RAW_PATHS, red=exactly(FOUND, (*DISGUISED, "/v1%2fmodels"))),),
)
async def a_path_is_what_it_says(stage: Stage) -> None:
    pod = await stage.pod()
    key = (await stage.gateway(pod)).key
    asked = {path: request(chat(), key=key, path=path) for path in DISGUISED}
    asked["/v1%2fmodels"] = request(b"", key=key, path="/v1%2fmodels", method="GET")
    led = [path for path, status in (await statuses(stage, asked)).items() if status != 404]
    expect(not led, FOUND + "; ".join(led))
    expect(not pod.requests, "the pod was asked")
    # The one thing that is not compared raw.
    expect((await told(stage, request(chat(), key=key, path="//v1///chat//completions"))).status == 200, "two slashes")


@scene(
    "F91",
    "A name with an underscore is no other spelling of one with a dash",
    promise=Promise.FRONT_DOOR,
    without=(Without(NAMES_AS_THEY_ARE, red="expected 401 invalid_api_key, 200 came"),),
)
async def an_underscore_is_no_dash(stage: Stage) -> None:
    pod = await stage.pod()
    key = (await stage.gateway(pod)).key
    client = await stage.client()
    client.send(request(chat(), headers={"x_api_key": key, "x_request_id": "mine"}))
    came = await client.expect(401, "invalid_api_key")
    expect(came.headers["x-request-id"] != "mine", "x_request_id was believed")
    expect(not pod.requests, "the pod was asked")


ANSWERED = "answered otherwise: "


@scene(
    "F91b",
    "Odd bytes in a head, no key, half a key, two keys and 64 KiB of a key are refused, and are no fault of ours",
    promise=Promise.FRONT_DOOR,
    without=(
        Without(STRICT_PARSER, red=exactly(ANSWERED, ("NUL", "escape"))),
        Without(KEYS_BY_DIGEST, red=exactly(ANSWERED, ("8 bits", "two letters of UTF-8"))),
        Without(SAID_ONCE, red=exactly(ANSWERED, ("twice", "twice, the first one good"))),
        Without(HEAD_BOUNDS, red=exactly(ANSWERED, ("64 KiB",))),
    ),
)
async def odd_keys_are_no_keys(stage: Stage) -> None:
    pod = await stage.pod()
    good = (await stage.gateway(pod)).key
    bearer = {
        "none": ("", 401),
        "empty": ("Authorization: Bearer \r\n", 401),
        "nothing behind it": ("Authorization: Bearer\r\n", 401),
        "8 bits": ("Authorization: Bearer \xe9\xff\r\n", 401),
        "two letters of UTF-8": ("X-Api-Key: \xc3\xa9\xc3\xa9\r\n", 401),
        "4 KiB": (f"Authorization: Bearer {'x' * 5000}\r\n", 401),
        "64 KiB": (f"Authorization: Bearer {'x' * 65536}\r\n", 431),
        "twice": (f"Authorization: Bearer {good}\r\nAuthorization: Bearer {good}\r\n", 400),
        "twice, the first one good": (f"Authorization: Bearer {good}\r\nauthorization: Bearer x\r\n", 400),
        "two that differ": (f"Authorization: Bearer {good}\r\nX-Api-Key: x\r\n", 401),
        "bare CR": (f"Authorization: Bearer {good}\r\nX: a\rb\r\n", 400),
        "NUL": (f"Authorization: Bearer {good}\r\nX: a\0b\r\n", 400),
        "escape": (f"Authorization: Bearer {good}\r\nX: a\x1bb\r\n", 400),
    }
    start, _, rest = request(chat()).partition(b"\r\n")
    asked = {name: start + b"\r\n" + lines.encode("latin-1") + rest for name, (lines, _) in bearer.items()}
    came = await statuses(stage, asked)
    otherwise = [name for name, (_, status) in bearer.items() if came[name] != status]
    expect(not otherwise, ANSWERED + "; ".join(otherwise))
    expect(not pod.requests, "the pod was asked")


TRACE = f"00-{'a' * 32}-{'b' * 16}-00"


@scene(
    "F92",
    "Headers that a caller nominates for this hop go no further, and nothing of the gateway's own is lost by it",
    promise=Promise.FRONT_DOOR,
    without=(
        Without(KEYS_FIRST, red="expected 200, 401"),
        Without(HOP_BY_HOP, red="was sent more: accept, traceparent, less: nothing"),
        Without(OUR_HEADERS, red="was sent more: nothing, less: authorization, content-length, content-type, host"),
    ),
)
async def nominating_strips_nothing_of_ours(stage: Stage) -> None:
    pod = await stage.pod()
    gateway = await stage.gateway(pod)
    gateway.gateway.pools.use(connect_seconds=1, idle_seconds=3, api_key="the-pods-own")
    client = await stage.client()
    nominated = {"Connection": NOMINATED, "Accept": "text/html", "traceparent": TRACE}
    client.send(client.request(headers=nominated))
    await client.expect(200)
    _sent_exactly(pod.requests[0], OURS | {"authorization"})
    expect(fields_of(pod.requests[0])["authorization"] == "Bearer the-pods-own", "it is not the pod's key")


@scene(
    "F92b",
    "Of sixty other headers that a caller sends, none reaches a pod",
    promise=Promise.FRONT_DOOR,
    without=(Without(FEW_HEADERS, red="was sent more: .*cookie, cookie2.*x-vllm-priority"),),
)
async def foreign_headers_reach_no_pod(stage: Stage) -> None:
    pod = await stage.pod()
    await stage.gateway(pod)
    client = await stage.client()
    client.send(client.request(headers=dict.fromkeys(FOREIGN, CANARY) | {"traceparent": TRACE}))
    await client.expect(200)
    _sent_exactly(pod.requests[0], OURS | {"traceparent"})


def _sent_exactly(raw: bytes, names: set[str]) -> None:
    sent = set(fields_of(raw))
    more, less = (", ".join(sorted(some)) or "nothing" for some in (sent - names, names - sent))
    expect(sent == names, f"the pod was sent more: {more}, less: {less}")


def _json(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


_TWO = '{"model":"m","messages":[]'
AMBIGUOUS = {
    "NaN": _json(_TWO + ',"x":NaN}'),
    "Infinity": _json(_TWO + ',"temperature":-Infinity}'),
    "1e999": _json(_TWO + ',"temperature":1e999}'),
    "a number of 5,000 digits": _json(_TWO + f',"seed":{"9" * 5000}}}'),
    "model twice": _json('{"model":"cheap","messages":[],"model":"m"}'),
    "model twice, once in disguise": _json(_TWO + ',"mod\\u0065l":"m"}'),
    "another key twice": _json(_TWO + ',"x":1,"x":2}'),
    "200,000 levels": _json(_TWO + f',"x":{"[" * 200_000}{"]" * 200_000}}}'),
    "65 levels": _json(_TWO + f',"x":{"[" * 65}{"]" * 65}}}'),
    "a byte order mark": b"\xef\xbb\xbf" + _json(_TWO + "}"),
    "UTF-16": (_TWO + "}").encode("utf-16"),
    "bytes that are no UTF-8": _json(_TWO).replace(b'"m"', b'"\xff"') + b"}",
    "half a surrogate pair": _json('{"messages":[],"model":"\\ud800"}'),
    "half a pair, raw": _json('{"messages":[],"model":"\ud800"}'),
    "trailing bytes": _json(_TWO + "}x"),
    "two bodies": _json(_TWO + "}" + _TWO + "}"),
    "a comma too many": _json(_TWO + ",}"),
    "a line's end in a string": _json(_TWO + ',"x":"\n"}'),
    "a list": b"[]",
    "null": b"null",
    "a text": b'"m"',
    "nothing": b"",
    "a key of 100 kB": _json(_TWO + f',"{"k" * 100_000}":1}}'),
    "a thousand keys": _json(_TWO + "".join(f',"k{place}":1' for place in range(1000)) + "}"),
    "a model that is no text": b'{"model":["m"],"messages":[]}',
}
READ_BY_PYTHON = (
    *("NaN", "1e999", "model twice", "model twice, once in disguise", "another key twice", "200,000 levels"),
    *("65 levels", "a byte order mark", "UTF-16", "half a surrogate pair", "half a pair, raw", "a list", "null"),
    *("a text", "a key of 100 kB", "a thousand keys"),
)
"""Of these, what a gateway takes, or breaks of, that believes Python's reader."""


@scene(
    "F94",
    "A body that two parsers may read in two ways, or that is none, is refused; no pod reads it",
    promise=Promise.FRONT_DOOR,
    without=(Without(JSON_MEANS_ONE_THING, red=exactly(ANSWERED, READ_BY_PYTHON)),),
)
async def json_means_one_thing(stage: Stage) -> None:
    pod = await stage.pod()
    key = (await stage.gateway(pod)).key
    asked = {name: request(body, key=key) for name, body in AMBIGUOUS.items()}
    otherwise = [name for name, status in (await statuses(stage, asked)).items() if status != 400]
    expect(not otherwise, ANSWERED + "; ".join(otherwise))
    # A name like any other to all parsers, and nobody's.
    ends = await told(stage, request(_json('{"model":"m\\u0000","messages":[]}'), key=key))
    expect(ends.status == 404, "a model's name ends at a NUL")
    expect(not pod.requests, "the pod was asked")


LEVELS = 100_000


@scene(
    "F94b",
    "A body that was made to be hard to read takes less than five times the time of a plain one of its size",
    promise=Promise.COST,
    without=(Without(READ_IN_PASSES, red="times the processor's time of a plain body"),),
)
async def hostile_json_is_cheap(stage: Stage) -> None:
    key = (await stage.gateway(await stage.pod())).key
    plain = request(chat(user="x" * 2 * LEVELS, model="nobody"), key=key)
    for name, more in {
        "levels": "[" * LEVELS + "]" * LEVELS,
        "strings": "[" + ",".join(['""'] * (LEVELS // 2)) + "]",
        "digits": "9" * 2 * LEVELS,
        "backslashes": '"' + "\\\\" * LEVELS + '"',
    }.items():
        hard = request(_json(_TWO + f',"x":{more}}}'), key=key)
        # In turn, and the least of each: what others do to the processor only adds.
        pairs = [(await _seconds(stage, hard), await _seconds(stage, plain)) for _ in range(15)]
        dear, cheap = map(min, zip(*pairs, strict=True))
        times = dear / cheap
        expect(times < 5, f"{name}: {times:.0f} times the processor's time of a plain body")


async def _seconds(stage: Stage, data: bytes) -> float:
    """That this loop's thread has worked for it."""
    began = time.thread_time()
    await told(stage, data)
    return time.thread_time() - began


OTHER_TYPES = (
    *("", "text/plain", "text/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"),
    *("application/jsonx", "application/json-patch+json", "application/json; charset=utf-7", "*/*"),
    *("application/json; charset=utf-16", "application/json, text/plain", "text/plain; application/json"),
)


@scene(
    "F95",
    "A body that is not declared as JSON in UTF-8 is not read as it: no foreign page can send one without asking",
    promise=Promise.FRONT_DOOR,
    without=(Without(JSON_ALONE, red=exactly(ANSWERED, (*OTHER_TYPES, "gzip"))),),
)
async def json_is_declared(stage: Stage) -> None:
    pod = await stage.pod()
    key = (await stage.gateway(pod)).key
    asked = {kind: request(chat(), key=key, headers={"Content-Type": kind}) for kind in OTHER_TYPES}
    asked["gzip"] = request(chat(), key=key, headers={"Content-Encoding": "gzip"})
    otherwise = [kind for kind, status in (await statuses(stage, asked)).items() if status != 415]
    expect(not otherwise, ANSWERED + "; ".join(otherwise))
    twice = {"Content-Type": "application/json\r\nContent-Type: text/plain"}
    expect((await told(stage, request(chat(), key=key, headers=twice))).status == 400, "two types were one")
    expect(not pod.requests, "the pod was asked")


NAMES = 600
MOST_METRICS_BYTES = 1 << 20
METHODS = ("PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "M-SEARCH", "QUERY", "NOSUCH", "get")


def series(gateway: Running) -> set[bytes]:
    """What /metrics has lines of."""
    gateway.gateway.journal.observe()
    return {line.rpartition(b" ")[0] for line in gateway.gateway.metrics.exposition().splitlines()}


def no_more(gateway: Running, before: set[bytes], by: str) -> None:
    """Raises `SceneFailed` if there are series that there were not."""
    more = series(gateway) - before
    expect(not more, f"{by}: {len(more)} series more, {sorted(more)[:3]}")


@scene(
    "F96",
    "Names that callers make up, by the hundred and of any length, make no series",
    promise=Promise.COST,
    without=(Without(BOUNDED_LABELS, red="series more"),),
)
async def made_up_names_make_no_series(stage: Stage) -> None:
    gateway = await stage.gateway(await stage.pod())
    client = await stage.client()

    async def hears_no(place: int) -> None:
        for name in (f"m-{place}", f'"}}\n# HELP x {place}', f"{place}" * 50, f"other\\{place}", f"{place}\u2028"):
            client.send(client.request(model=name, headers={"User-Agent": name.encode().hex()}))
            await client.expect(404, "model_not_found")

    async def is_no_json(half: bytes) -> None:
        client.send(request(b'{"model":"%b","messages":[]}' % half, key=gateway.key))
        await client.expect(400, "invalid_json")

    await client.ask()
    await client.expect(200)
    await hears_no(0)
    await is_no_json(b"\\ud800")
    before = series(gateway)
    for place in range(1, NAMES // 5):
        await hears_no(place)
        await is_no_json(b"\\ud8%02x" % place)
    no_more(gateway, before, "names")
    client.send(client.request(model="x" * 1_000_000))
    await client.expect(404, "model_not_found")
    no_more(gateway, before, "a name of a megabyte")
    size = len(gateway.gateway.metrics.exposition())
    expect(size < MOST_METRICS_BYTES, f"/metrics has {size} bytes")


@scene(
    "F96b",
    "Paths, methods and codes of errors that others make up make no series",
    promise=Promise.COST,
    without=(Without(ROUTES_ARE_LABELS, red="series more"),),
)
async def made_up_paths_make_no_series(stage: Stage) -> None:
    codes = iter(range(10_000))
    pod = await stage.pod(script_of=lambda sent: (_refuses(next(codes)),))
    gateway = await stage.gateway(pod)
    asked: dict[str, bytes] = {}
    for place in range(40):
        asked[f"route {place}"] = request(chat(), key=gateway.key, path=f"/v1/{place}")
        asked[f"label {place}"] = request(chat(), key=gateway.key, path=f'/"}}{place}')
        asked[f"code {place}"] = request(chat(), key=gateway.key)
        asked[f"id {place}"] = request(b"", key=gateway.key, path=f"/v1/models/{place}%0a", method="GET")
    asked |= {method: request(chat(), key=gateway.key, method=method) for method in METHODS}
    first = [name for name in asked if name.endswith(" 0")] + list(METHODS)
    await statuses(stage, {name: asked.pop(name) for name in first})
    before = series(gateway)
    await statuses(stage, asked)
    no_more(gateway, before, "paths, methods and codes")


def _refuses(place: int) -> bytes:
    error = {"message": f"no {place}", "type": f"T{place}", "param": None, "code": f"c{place}"}
    return answer(json.dumps({"error": error}).encode(), b"400 Bad Request")


@scene(
    "F96c",
    "Hosts that callers make up are remembered up to a bound",
    promise=Promise.COST,
    without=(Without(FEW_REMEMBERED, red="1[12][0-9][0-9] hosts are remembered"),),
)
async def little_is_remembered(stage: Stage) -> None:
    gateway = await stage.gateway(await stage.pod())
    client, key = await stage.client(), gateway.key.encode()
    for place in range(1100):
        client.send(b"GET /v1/models HTTP/1.1\r\nHost: h%d\r\nAuthorization: Bearer %b\r\n\r\n" % (place, key))
        await client.expect(200)
    hosts = len(gateway.gateway.edge.hosts)
    expect(hosts <= 1024, f"{hosts} hosts are remembered")


FORGED = '"}\r\n{"forged":"'
ODD = (FORGED, "\x1b[2J\x1b[31m", "a\u2028b\u2029c\x85d", "\u202egnp", "\0\x7f\x9b", "x" * 1_000_000)
MOST_CHARACTERS = 256


@scene(
    "F97",
    "A line of the log is one line, can be read, and has an end, whatever callers and pods call things",
    promise=Promise.FRONT_DOOR,
    without=(Without(LINES_ESCAPED, red="lines that are no JSON, .*odd characters: .*, a word of 1000000 char"),),
)
async def no_line_is_forged(stage: Stage) -> None:
    pod = await stage.pod(scripts=[[_finished(odd)] for odd in ODD])
    gateway = await stage.gateway(pod)
    client = await stage.client()
    for odd in ODD:
        client.send(client.request(model=odd))
        await client.expect(404)
        await client.ask()
        await client.expect(200)
    for place, head in enumerate(('X-Request-Id: "},{', 'User-Agent: "}\xc2\x85', "X-Request-Id: " + "i" * 4000)):
        data = request(chat(), key=gateway.key, path=f'/v1/%0d%0a{{"{place}"')
        await told(stage, data.replace(b"\r\n", b"\r\n" + head.encode("latin-1") + b"\r\n", 1))
    gateway.gateway.journal.observe()
    gateway.gateway.access_log.sync()
    wrong = _wrong_with(gateway.out.getvalue(), count=2 * len(ODD) + 3)
    expect(not wrong, f"in the log there are {', '.join(wrong)}")


def _finished(reason: str) -> bytes:
    return says.whole(choices=[{"index": 0, "message": {"content": "a"}, "finish_reason": reason[:200_000]}])


def _wrong_with(log: bytes, count: int) -> list[str]:
    text = log.decode()
    lines = text.removesuffix("\n").split("\n")
    read, words = [], [""]
    for line in lines:
        try:
            read.append(json.loads(line))
        except ValueError:
            words += re.findall(r'[^"]+', line)
    words += [word for each in read for word in each.values() if isinstance(word, str)]
    odd = {each for each in text if not each.isprintable()} - {"\n"}
    longest = max(map(len, words))
    wrong = [f"{len(lines) - len(read)} lines that are no JSON"] if len(read) < len(lines) else []
    wrong += [f"{len(lines)} lines of {count} requests"] if len(lines) != count else []
    wrong += [f"odd characters: {sorted(odd)!r}"] if odd else []
    return wrong + ([f"a word of {longest} characters"] if longest > MOST_CHARACTERS else [])


class _Breaks(Forwarder):
    """Has a fault, and an error that quotes what it worked on."""

    async def forward(self, request: Request, models: tuple[str, ...]) -> None:
        raise ValueError(f"cannot forward {b''.join(request.call.body)!r}")


@scene(
    "F97b",
    "An error of the gateway's own is told by its type and place, and quotes nothing it worked on",
    promise=Promise.FRONT_DOOR,
    without=(Without(ERRORS_UNQUOTED, red=f"'{PROMPT}' stands in the log"),),
)
async def errors_quote_nothing(stage: Stage) -> None:
    await stage.gateway(await stage.pod(), parts=THE_USUAL._replace(forwarder=_Breaks))
    client = await stage.client()
    client.send(client.request())
    await client.expect(500, "internal_error")
    expect("ValueError" in stage.logged.text, "the error is not in the log")


OF_ADMINISTRATORS = (
    *("/sleep", "/wake_up", "/is_sleeping", "/engines", "/v1/engines", "/metrics", "/docs", "/redoc", "/openapi.json"),
    *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/collective_rpc", "/reset_prefix_cache", "/start_profile"),
    *("/reset_mm_cache", "/server_info", "/scale_elastic_ep", "/invocations", "/pause", "/resume", "/abort_requests"),
    *("/livez", "/readyz", "/health", "/ping", "/version", "/load", "/status", "/status.json", "/debug", "/explain"),
    *("/generative_scoring", "/inference/v1/generate", "/update_weights", "/v1/chat/completions/render", "/"),
)


@scene(
    "F99",
    "What administrators may do of pods and of the gateway is not there on the public port, for any key",
    promise=Promise.FRONT_DOOR,
    without=(Without(LISTED_ROUTES, red=exactly(FOUND, OF_ADMINISTRATORS)),),
)
async def administrators_do_not_come_here(stage: Stage) -> None:
    pod = await stage.pod()
    key = (await stage.gateway(pod)).key
    for method, body in (("POST", chat()), ("GET", b"")):
        asked = {path: request(body, key=key, path=path, method=method) for path in OF_ADMINISTRATORS}
        led = [path for path, status in (await statuses(stage, asked)).items() if status != 404]
        expect(not led, FOUND + "; ".join(led))
    expect(not pod.requests, "the pod was asked")


PAGE = {"Origin": "https://evil.example", "Cookie": "session=1", "Access-Control-Request-Method": "POST"}


@scene(
    "F100",
    "No page of another origin may read an answer unless it is listed, no cookie counts, and none is given",
    promise=Promise.FRONT_DOOR,
    without=(
        Without(ORIGINS_LISTED, red="was told access-control-allow-credentials, access-control-allow-origin"),
        Without(ANSWERS_HEAD_IS_OURS, red="was told access-control-allow-origin, set-cookie"),
    ),
)
async def pages_are_not_let_in(stage: Stage) -> None:
    loose = b"access-control-allow-origin: *\r\nset-cookie: session=1\r\n"
    pod = await stage.pod(answer(b'{"data":[]}', content_type=b"application/octet-stream", more=loose))
    listed = {"cors_origins": ["https://chat.example"]}
    for gateway in (await stage.gateway(pod), await stage.gateway(pod, server=listed)):
        for page in (PAGE, PAGE | {"Origin": "null"}, PAGE | {"Origin": "https://chat.example.evil"}):
            embeds = {"model": "m", "input": "a", "encoding_format": "bytes"}
            for key, status in ((gateway.key, 200), (None, 401)):
                client = await stage.client(gateway)
                client.send(request(embeds, key=key, headers=page, path="/v1/embeddings"))
                _told_nothing(await client.expect(status))
            client = await stage.client(gateway)
            client.send(request(b"", headers=page, method="OPTIONS"))
            _told_nothing(await client.expect(405, "method_not_allowed", allow="POST"))


def _told_nothing(came: Answer) -> None:
    said = sorted(name for name in came.headers if name.startswith("access-control-") or name == "set-cookie")
    expect(not said, f"a page was told {', '.join(said)}")


PROMPT_BYTES = 256 << 10
MOST_BLOCKS = 4096
"""What a pod is believed to have cached, if it does not say how much it can."""


def known(gateway: Running) -> int:
    """How much is remembered of prompts, all in all."""
    index = gateway.gateway.balancer._cache
    return sum(pod.held for pod in index._pods.values()) + len(index._young) + len(index._old)


@scene(
    "F103",
    "Prompts without end, and long ones that begin alike, are remembered up to a bound",
    promise=Promise.COST,
    without=(Without(FORGETS_PROMPTS, red="of prompts are remembered"),),
)
async def prompts_are_forgotten(stage: Stage) -> None:
    gateway = await stage.gateway(*await stage.some_pods(2), pool={"policy": "auto"})
    client = await stage.client()
    alike = "y" * 1_000_000
    for place in range(30):
        text = f"{place:9}" * (PROMPT_BYTES // 9 + 60) if place < 25 else alike + str(place)
        client.send(request({"model": "m", "messages": [{"role": "user", "content": text}]}, key=gateway.key))
        await client.expect(200)
    expect(known(gateway) <= 2 * MOST_BLOCKS + 1024, f"{known(gateway)} pieces of prompts are remembered")
    index, uid = gateway.gateway.balancer._cache, gateway.gateway.fleet.value.pods[0].uid
    for place in range(40_000):
        index.sent(uid, blocks_of(b"%09d" % place * (BLOCK_BYTES // 9 + 1), ("m",)))
    expect(known(gateway) <= 2 * MOST_BLOCKS + (1 << 16), f"{known(gateway)} pieces of prompts are remembered")


@scene(
    "F104",
    "A key that may salt its prompts shares no pod's cache by them with anybody, and nobody else may use its salt",
    promise=Promise.FRONT_DOOR,
    without=(
        Without(SALT_APART, red="another salt was led to the pod that has the prompt"),
        Without(GUARDED, red="expected 403 field_not_allowed, 200 came"),
    ),
)
async def salted_prompts_share_nothing(stage: Stage) -> None:
    pods = await stage.some_pods(3)
    tenant = {"allow_fields": frozenset({"cache_salt"})}
    gateway = await stage.gateway(*pods, pool={"policy": "auto"}, tenant=tenant)
    prompt = [{"role": "user", "content": "a secret of one tenant's " * 2000}]

    async def sends(salt: str) -> str:
        client = await stage.client()
        await client.ask(messages=prompt, cache_salt=salt)
        await client.expect(200)
        return str((await stage.line())["decision"])

    await sends("one")
    expect(await sends("one") == "prefix", "the same salt was not led to the pod that has the prompt")
    for other in range(8):
        led = await sends(f"two {other}")
        expect(led != "prefix", "another salt was led to the pod that has the prompt")
    sent = b"".join(sent for pod in pods for sent in pod.requests)
    expect(sent.count(b'"cache_salt": "one"') == 2, "the salt did not reach the pod as it was")
    stranger = await stage.client(key=gateway.other_key)
    await stranger.ask(messages=prompt, cache_salt="one")
    await stranger.expect(403, "field_not_allowed")
