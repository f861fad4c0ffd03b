"""What a gateway does against requests that mean two things, or more than they say."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from hmac import compare_digest
from posixpath import normpath
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes

import httptools
import msgspec

from gateway.balancing.affinity import PrefixIndex
from gateway.balancing.balancer import Balancer
from gateway.core.call import Trail
from gateway.core.caller import Tenant
from gateway.core.errors import (
    InvalidJson,
    InvalidRequest,
    NotFound,
)
from gateway.edge.port import Edge
from gateway.edge.protocol import ClientConnection
from gateway.limits.keys import KeyRing
from gateway.parts import Parts
from gateway.pipeline.body import Steps, members
from gateway.pipeline.checks import GUARDED_FIELDS
from gateway.pipeline.cors import Origins
from gateway.pipeline.exchange import Head
from gateway.pipeline.forward import Forwarder
from gateway.pipeline.intake import Look, look, looking
from gateway.pipeline.operations import CHAT, Operation
from gateway.pipeline.reception import Reception, Visit
from gateway.pipeline.relay import First, Relay, Whole
from gateway.pipeline.serve import Pipeline
from gateway.telemetry.access_log import AccessLog, Told
from gateway.telemetry.metrics import Metrics
from gateway.upstream.headers import RequestHeads
from tests.scenes.defences.replacing import but, having
from tests.scenes.scene import Defence


class _TakesAnyHead(ClientConnection):
    __slots__ = ()

    def improper_head(self, *_: Any) -> None:
        return None


class _LenientFront(ClientConnection):
    __slots__ = ()

    def new_parser(self) -> httptools.HttpRequestParser:
        parser, every = super().new_parser(), [True] * 10
        parser.set_dangerous_leniencies(*every)
        return parser


class _LenientThroughout(_LenientFront, _TakesAnyHead):
    __slots__ = ()


class _TakesAnyChunks(ClientConnection):
    __slots__ = ()

    def improper_body(self, *_: Any) -> None:
        return None


STRICT_PARSER = Defence(
    "strict_parser",
    "The parser of heads and chunks is strict: it has no leniency on.",
    having(edge=but(Edge, connection=_LenientFront)),
)
ONE_MEANING = Defence(
    "one_meaning",
    "A head that another server might read in another way is refused, though the parser lets it through.",
    having(edge=but(Edge, connection=_TakesAnyHead)),
)
READ_TWICE = Defence(
    "read_twice",
    "What frames a body is looked at twice, by the parser and behind it: most of what is wrong is refused by both.",
    having(edge=but(Edge, connection=_LenientThroughout)),
)
CHUNKS_BRING = Defence(
    "chunks_bring",
    "Chunks that say more of themselves than they bring are refused.",
    having(edge=but(Edge, connection=_TakesAnyChunks)),
)


class _TidiesPaths(Reception):
    """Decodes first, and compares then; whatever is left of a mask is taken off."""

    def receive(self, head: Head) -> Visit:
        told = unquote_to_bytes(head.target).replace(b"\xc0\xaf", b"/").replace(b"\\", b"/").replace(b"\0", b"")
        told = b"/".join(segment.partition(b";")[0] for segment in told.split(b"/"))
        return super().receive(head._replace(target=normpath(told).rstrip(b".").lower()))


RAW_PATHS = Defence(
    "raw_paths",
    "Paths are compared as they came: nothing is decoded, resolved or tidied up.",
    having(reception=_TidiesPaths),
)


class _ReadsUnderscores(Reception):
    """Takes names as CGI has them."""

    def receive(self, head: Head) -> Visit:
        fields = {name.replace(b"_", b"-"): value for name, value in head.fields.items()}
        return super().receive(head._replace(fields=fields))


NAMES_AS_THEY_ARE = Defence(
    "names_as_they_are",
    "A header's name is compared whole: an underscore is no dash.",
    having(reception=_ReadsUnderscores),
)


class _ComparesText(KeyRing):
    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring

    def tenant_of(self, key: bytes) -> Tenant | None:
        # It takes no text beyond ASCII.
        compare_digest(key.decode("latin-1"), "sk-pg_")
        return self._ring.tenant_of(key)


class _JudgesText(Reception):
    def __init__(self, keys: KeyRing | None, *given: Any, **named: Any) -> None:
        super().__init__(None if keys is None else _ComparesText(keys), *given, **named)


KEYS_BY_DIGEST = Defence(
    "keys_by_digest",
    "A key is bytes, and found by its digest.",
    having(reception=_JudgesText),
)


class _TakesTheFirst(Reception):
    def _check_repeated(self, repeated: frozenset[bytes]) -> None:
        """One of them will do."""


SAID_ONCE = Defence(
    "said_once",
    "A header that says who asks, or for what, may come once.",
    having(reception=_TakesTheFirst),
)


class _PassesTheHop(Reception):
    """Forgets what a Connection field is for."""

    def receive(self, head: Head) -> Visit:
        fields = dict(head.fields)
        visit = super().receive(head)
        head.fields.update(fields)
        return visit


HOP_BY_HOP = Defence(
    "hop_by_hop",
    "What a Connection field names is for this hop, and goes to no pod.",
    having(reception=_PassesTheHop),
)


class _StripsAtTheDoor(Reception):
    def receive(self, head: Head) -> Visit:
        return super().receive(head._replace(fields=_without_nominated(head.fields, head.fields)))


KEYS_FIRST = Defence(
    "keys_first",
    "Who asks is told by what came, whatever a Connection field names.",
    having(reception=_StripsAtTheDoor),
)


def _without_nominated(told: dict[bytes, bytes], by: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    nominated = {name.strip().lower() for name in by.get(b"connection", b"").split(b",")}
    return {name: value for name, value in told.items() if name not in nominated}


def _with_fields(
    change: Callable[[dict[bytes, bytes], Mapping[bytes, bytes]], dict[bytes, bytes]],
) -> Callable[[Parts], Parts]:
    """A gateway that does this to the fields for a pod, by the caller's."""

    def head(
        path: bytes, host: bytes, authorization: bytes, fields: Mapping[bytes, bytes], *more: Any, **named: Any
    ) -> bytes:
        start, *lines = RequestHeads().of(path, host, authorization, fields, *more, **named).split(b"\r\n")[:-2]
        ours = {name: value for name, _, value in (line.partition(b": ") for line in lines)}
        told = [b"%b: %b" % field for field in change(ours, fields).items()]
        return b"\r\n".join([start, *told, b"", b""])

    class _Careless(RequestHeads):
        of = staticmethod(head)

    return having(forwarder=but(Forwarder, heads=_Careless))


OUR_HEADERS = Defence(
    "our_headers",
    "What the gateway says to a pod is its own: no word of a caller takes any of it away.",
    _with_fields(_without_nominated),
)
FEW_HEADERS = Defence(
    "few_headers",
    "Of a caller's headers those pass that are listed, and no other.",
    _with_fields(lambda ours, fields: {**fields, **ours}),
)


class _ReadsLikePython(Pipeline):
    """Believes its own decoder, and sends on what came."""

    @staticmethod
    def look(body: bytes, operation: Operation) -> Look:
        try:
            told = json.loads(body)
        except ValueError:
            raise InvalidJson("the body is not JSON") from None
        if not isinstance(told["model"], str):
            raise InvalidRequest("the model is no text")
        values = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in told.items()}
        return Look(body, values, told["model"], stream=False, may_name_urls=False)

    @staticmethod
    def looking(body: bytes, operation: Operation) -> Steps[Look]:
        yield
        return _ReadsLikePython.look(body, operation)


JSON_MEANS_ONE_THING = Defence(
    "json_means_one_thing",
    "What parsers read in different ways is refused, before anything is read of it.",
    having(pipeline=_ReadsLikePython),
)


class _WalksThroughJson(Pipeline):
    @staticmethod
    def look(body: bytes, operation: Operation) -> Look:
        members(body)
        return look(body, operation)

    @staticmethod
    def looking(body: bytes, operation: Operation) -> Steps[Look]:
        members(body)
        return looking(body, operation)


READ_IN_PASSES = Defence(
    "read_in_passes",
    "A body is looked at in a few passes of the machine's, and in no loop of Python's.",
    having(pipeline=_WalksThroughJson),
)


class _TakesAnyContentType(Reception):
    def _check_body(self, visit: Visit, fields: dict[bytes, bytes]) -> None:
        """It looks like JSON."""


JSON_ALONE = Defence(
    "json_alone",
    "JSON is read where the content type says so, in UTF-8 and not encoded.",
    having(reception=_TakesAnyContentType),
)


class _BelievesInNames(Metrics):
    def observe(self, trail: Trail) -> None:
        trail.served_model = True
        super().observe(trail)


BOUNDED_LABELS = Defence(
    "bounded_labels",
    "A name that a caller has made up is no label: it counts as `other`.",
    having(metrics=_BelievesInNames),
)


class _LabelsPaths(Reception):
    def receive(self, head: Head) -> Visit:
        visit = super().receive(head)
        visit.trail.operation = head.target.decode("latin-1")
        return visit


ROUTES_ARE_LABELS = Defence(
    "routes_are_labels",
    "A path is a label where there is such a route; any other counts as `other`.",
    having(reception=_LabelsPaths),
)


class _RemembersAll(Edge):
    def remember_host(self, host: bytes | None) -> None:
        self.hosts.add(host)


FEW_REMEMBERED = Defence(
    "few_remembered",
    "What is remembered of what callers say has a bound.",
    having(edge=_RemembersAll),
)


class _WritesAsItCame(AccessLog):
    def __init__(self, out: BinaryIO) -> None:
        super().__init__(out)
        self._render = _as_it_came


def _as_it_came(trail: Trail, second: bytes, milliseconds: int, told: Told) -> bytes:
    return f'{{"time":"{second.decode()}.{milliseconds}","model":"{trail.model}","finish":"{trail.finish}"}}\n'.encode()


LINES_ESCAPED = Defence(
    "lines_escaped",
    "A request is one line of JSON: what would end it or colour a terminal is escaped, and what is long is cut.",
    having(access_log=_WritesAsItCame),
)


def _tells_errors(usual: Parts) -> Parts:
    class _Tells(usual.forwarder):  # type: ignore[name-defined,misc]  # whichever the scene has
        async def forward(self, *given: Any) -> None:
            try:
                await super().forward(*given)
            except Exception as error:
                logging.getLogger("poolgate").error("a request failed: %s", error)
                raise

    return usual._replace(forwarder=_Tells)


ERRORS_UNQUOTED = Defence(
    "errors_unquoted",
    "Of an error of its own the gateway logs the type and the place, and never the words.",
    _tells_errors,
)


class _ProxiesAll(Reception):
    def receive(self, head: Head) -> Visit:
        visit = super().receive(head)
        if not isinstance(visit.error, NotFound):
            return visit
        visit = super().receive(head._replace(target=CHAT.path, method=CHAT.method))
        visit.operation = replace(CHAT, path=head.target)
        return visit


LISTED_ROUTES = Defence(
    "listed_routes",
    "A path that is not in the table of operations reaches no pod.",
    having(reception=_ProxiesAll),
)


class _Reflects(Origins):
    def lines_for(self, fields: Mapping[bytes, bytes], repeated: frozenset[bytes]) -> bytes:
        origin = fields.get(b"origin", b"*")
        return b"access-control-allow-origin: %b\r\naccess-control-allow-credentials: true\r\n" % origin


class _LetsPagesIn(Reception):
    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.origins = _Reflects(("*",))


ORIGINS_LISTED = Defence(
    "origins_listed",
    "A page of another origin may read answers if it is listed, and never with credentials.",
    having(reception=_LetsPagesIn),
)


class _PassesAnswersHead(Relay):
    __slots__ = ()

    def _judge(self, body: bytes) -> First:
        judged, head = super()._judge(body), self._head
        own = (b"content-type", b"content-length")
        if isinstance(judged, Whole) and head is not None:
            return judged._replace(headers=tuple(each for each in head.fields.items() if each[0] not in own))
        return judged


ANSWERS_HEAD_IS_OURS = Defence(
    "answers_head_is_ours",
    "Nothing of a pod's head is passed on but its content type.",
    having(forwarder=but(Forwarder, relays=_PassesAnswersHead)),
)


class _NeverForgets(PrefixIndex):
    def __init__(self) -> None:
        super().__init__(1 << 40, 1 << 40)


FORGETS_PROMPTS = Defence(
    "forgets_prompts",
    "What is known of pods' caches has a bound: the least recently used is forgotten.",
    having(balancer=but(Balancer, caches=_NeverForgets)),
)


class _Unsalted(Look):
    @property
    def cache_salt(self) -> bytes:
        return b""


class _ForgetsSalt(Pipeline):
    @staticmethod
    def look(body: bytes, operation: Operation) -> Look:
        return _Unsalted(*look(body, operation))


SALT_APART = Defence(
    "salt_apart",
    "Prompts of two salts have nothing in common, whatever they say.",
    having(pipeline=_ForgetsSalt),
)


class _LetsAllFields(Reception):
    def receive(self, head: Head) -> Visit:
        visit = super().receive(head)
        visit.tenant = replace(visit.tenant, allow_fields=frozenset(GUARDED_FIELDS))
        return visit


GUARDED = Defence(
    "guarded_fields",
    "A field that reaches past the caller's own request wants a key that may send it.",
    having(reception=_LetsAllFields),
)
