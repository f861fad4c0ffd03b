"""The few fields we route on, read from a multipart form (RFC 7578).

vLLM reads forms with python-multipart, and so do we, by the same rules: the part that bears a file name is a file,
what is no UTF-8 counts as Latin-1. The form is forwarded as it came, so a field that stands in it twice is refused:
which of the two counts is the reader's choice. Where a rule leaves room, we are the stricter reader.
"""

import re
from collections.abc import Collection

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from gateway.core.errors import InvalidRequest, UnsupportedMediaType
from gateway.pipeline.body import Parts, in_place

MAX_PARTS = 100
MAX_FIELD_BYTES = 4096
"""Of a field that is read; files and other fields have the body's bound."""

_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
"""RFC 2046, section 5.1.1."""

_QUOTED = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_NAMES = re.compile(rb"(?<![a-z])name[*0-9]*[ \t]*=")
"""What gives a part its name: twice, or in the spelling of RFC 2231, readers differ about it."""

_AS_IT_IS = (b"", b"7bit", b"8bit", b"binary")
"""RFC 7578 deprecates any Content-Transfer-Encoding, and no reader of forms decodes one."""


def boundary_of(content_type: bytes) -> bytes:
    """The boundary that a form's Content-Type names.

    Raises `UnsupportedMediaType` for any other type, and for a charset but UTF-8.
    """
    media, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    charset = options.get(b"charset", b"utf-8").lower()
    if media != b"multipart/form-data" or not _BOUNDARY.fullmatch(boundary) or charset not in (b"utf-8", b"utf8"):
        raise UnsupportedMediaType("send the body as multipart/form-data, with its boundary in the Content-Type")
    return boundary


def read_form(body: bytes, boundary: bytes, wanted: Collection[str]) -> dict[str, str]:
    """Those of the `wanted` fields that the form has. Files are passed over.

    Raises `InvalidRequest` for what is no whole form, and for a wanted field that stands in it twice or is too long.
    """
    return _read(body, boundary, wanted).found


def form_asking_for_model(body: bytes, boundary: bytes, other: str) -> Parts:
    """A form that was read and has a field `model`, in parts, with another model's name in it."""
    start, end = _read(body, boundary, ("model",)).spans["model"]
    return in_place(body, start, end, other.encode("utf-8"))


def _read(body: bytes, boundary: bytes, wanted: Collection[str]) -> "_Reading":
    reading = _Reading(wanted)
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": reading.part_begins,
            "on_header_field": reading.header_name,
            "on_header_value": reading.header_value,
            "on_header_end": reading.header_ends,
            "on_headers_finished": reading.headers_end,
            "on_part_data": reading.data,
            "on_part_end": reading.part_ends,
            "on_end": reading.form_ends,
        },
    )
    try:
        parser.write(body)
    except FormParserError:
        raise InvalidRequest("the body is not a valid multipart form") from None
    if not reading.ended:
        raise InvalidRequest("the form ends before its last boundary")
    return reading


class _Reading:
    """What is known of a form so far, as the parser's callbacks tell it."""

    def __init__(self, wanted: Collection[str]) -> None:
        self.found: dict[str, str] = {}
        self.spans: dict[str, tuple[int, int]] = {}
        """Where the content of each of `found` stands, but for those without any."""
        self.ended = False
        self._wanted = wanted
        self._parts = 0
        self._header = b""
        self._value = b""
        self._disposition: bytes | None = None
        self._encoding = b""
        self._name: str | None = None
        self._text = b""

    def part_begins(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidRequest(f"the form has more than {MAX_PARTS} parts")
        self._disposition = None
        self._encoding = b""

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_ends(self) -> None:
        name = self._header.lower()
        if name == b"content-disposition":
            if self._disposition is not None:
                raise InvalidRequest("a part of the form has two headers Content-Disposition")
            self._disposition = self._value
        elif name == b"content-transfer-encoding":
            self._encoding = self._value.strip().lower()
        self._header = self._value = b""

    def headers_end(self) -> None:
        said = self._disposition or b""
        _, options = parse_options_header(said)
        name = _text(options.get(b"name", b""))
        self._text = b""
        self._name = name if name in self._wanted else None
        bare = _QUOTED.sub(b"", said).lower()
        if len(names := _NAMES.findall(bare)) > 1 or any(b"*" in each for each in names):
            raise InvalidRequest("a part of the form has a name that not everybody reads alike")
        if self._name is not None and b"filename" in bare:
            raise InvalidRequest(f"the field {name!r} is a file", param=name)
        if self._name is not None and self._encoding not in _AS_IT_IS:
            raise InvalidRequest(f"the field {name!r} has a Content-Transfer-Encoding", param=name)
        if self._name in self.found:
            raise InvalidRequest(f"the field {name!r} stands in the form twice", param=name)

    def data(self, data: bytes, start: int, end: int) -> None:
        if self._name is not None:
            self._text += data[start:end]
            # The form is written to the parser at once, so this is all of the content, and `data` the form itself.
            self.spans[self._name] = start, end
            if len(self._text) > MAX_FIELD_BYTES:
                raise InvalidRequest(f"the field {self._name!r} is too long", param=self._name)

    def part_ends(self) -> None:
        if self._name is not None:
            self.found[self._name] = _text(self._text)
            self._name = None

    def form_ends(self) -> None:
        self.ended = True


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
