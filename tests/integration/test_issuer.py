"""An issuer's keys are read over the network as it publishes them, and nothing that answers there can do harm."""

import asyncio
import json
import socket
import subprocess
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext

import pytest

from gateway.limits.issuer import MAX_ANSWER_BYTES, MAX_REDIRECTIONS, Published, Unread
from tests.fakes import answer
from tests.issuer import CONFIGURATION, KEYS, Drip, Hang, IssuerServer, set_of, signer
from tests.turns import within

FOUND = b"302 Found"


def configuration(**members: object) -> bytes:
    return answer(json.dumps(members).encode())


def redirection(to: str, status: bytes = FOUND) -> bytes:
    return answer(b"", status, more=b"location: " + to.encode() + b"\r\n")


async def refusal(server: IssuerServer, jwks_url: str | None = None, seconds: float = 60.0) -> str:
    """Why its keys are not read, without an address of it."""
    with pytest.raises(Unread) as refused:
        await Published(server.url, jwks_url, seconds=seconds).keys()
    assert "127.0.0.1" not in str(refused.value)
    assert str(server.port) not in str(refused.value)
    return str(refused.value)


async def test_the_issuer_says_itself_where_its_keys_are() -> None:
    async with IssuerServer([signer(), signer("RS256", "two")]) as server:
        assert len(await Published(server.url).keys()) == 2
        assert server.asked == [CONFIGURATION, KEYS]


async def test_an_issuers_name_may_end_in_a_slash() -> None:
    async with IssuerServer() as server:
        issuer = server.url + "/"
        server.instead[CONFIGURATION] = configuration(issuer=issuer, jwks_uri=server.url + KEYS)
        assert len(await Published(issuer).keys()) == 1
        assert server.asked == [CONFIGURATION, KEYS]


async def test_an_issuer_may_be_below_a_path() -> None:
    async with IssuerServer() as server:
        issuer = f"{server.url}/realms/acme"
        path = f"/realms/acme{CONFIGURATION}"
        server.instead[path] = configuration(issuer=issuer, jwks_uri=server.url + KEYS)
        assert len(await Published(issuer).keys()) == 1


async def test_keys_whose_place_is_known_are_read_there_alone() -> None:
    async with IssuerServer() as server:
        assert len(await Published("https://login.example", server.url + KEYS).keys()) == 1
        assert server.asked == [KEYS]


async def test_keys_may_be_on_another_host_if_the_issuer_says_so() -> None:
    async with IssuerServer() as server, IssuerServer([signer("RS256", "two")]) as other:
        server.instead[CONFIGURATION] = configuration(issuer=server.url, jwks_uri=other.url + KEYS)
        assert (await Published(server.url).keys()).find("two", "RS256")


async def test_nothing_is_sent_that_need_not_be_and_no_cookie_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    async with IssuerServer() as server:
        server.instead[KEYS] = answer(set_of(signer()), more=b"set-cookie: a=b\r\n")
        published = Published(server.url)
        await published.keys()
        await published.keys()
        for head in server.requests:
            names = {line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:] if line}
            assert names <= {b"host", b"accept", b"accept-encoding", b"user-agent", b"connection"}
            assert b"accept-encoding: identity" in head.lower()


@pytest.mark.parametrize("status", [b"301 Moved", b"302 Found", b"303 See", b"307 Again", b"308 Moved"])
async def test_a_redirection_on_the_same_host_is_followed(status: bytes) -> None:
    async with IssuerServer() as server:
        server.instead[CONFIGURATION] = redirection("/elsewhere", status)
        server.instead["/elsewhere"] = configuration(issuer=server.url, jwks_uri=server.url + KEYS)
        assert len(await Published(server.url).keys()) == 1


async def test_a_redirection_to_another_host_port_or_scheme_is_not_followed() -> None:
    async with IssuerServer() as server, IssuerServer() as other:
        for place in (f"{other.url}{KEYS}", f"https://127.0.0.1:{server.port}/", "http://169.254.169.254/", "file:///"):
            server.instead[KEYS] = redirection(place)
            assert await refusal(server) == "the answer with the keys leads to another host"
        assert not other.asked


async def test_redirections_come_to_an_end() -> None:
    async with IssuerServer() as server:
        server.instead[KEYS] = redirection(KEYS)
        assert await refusal(server) == "the answer with the keys leads on and on"
        assert server.asked.count(KEYS) == 1 + MAX_REDIRECTIONS


@pytest.mark.parametrize("place", ["http://a:b/", "//", "\x00", "http://127.0.0.1:99999/"])
async def test_a_redirection_to_nowhere_is_a_failure(place: str) -> None:
    async with IssuerServer() as server:
        server.instead[KEYS] = redirection(place)
        assert await refusal(server)


@pytest.mark.parametrize("path", [CONFIGURATION, KEYS])
@pytest.mark.parametrize(
    ("said", "told"),
    [
        (answer(b"<html>"), "what comes is of no use: it is not JSON"),
        (answer(b"[]"), "what comes is of no use: it is no JSON object"),
        (answer(b"[" * 100_000), "what comes is of no use: it holds too many lists and objects"),
        (answer(b""), "what comes is of no use: it is not JSON"),
        (answer(b"{}", b"500 Oops"), "the answer with the * has the status 500"),
        (answer(b"{}", b"204 Nothing"), "the answer with the * has the status 204"),
        (answer(b"{}", b"302 Found"), "the answer with the * has the status 302"),
        (answer(b"x", more=b"content-encoding: gzip\r\n"), "the answer with the * is compressed"),
        (answer(b" " * (MAX_ANSWER_BYTES + 1)), f"the answer with the * is longer than {MAX_ANSWER_BYTES} bytes"),
        (b"\r\n\r\n", "there is no connection, or it breaks (RemoteProtocolError)"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", "there is no connection, or it breaks (RemoteProtocolError)"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300_000, "there is no connection, or it breaks (RemoteProtocolError)"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "there is no connection, or it breaks (RemoteProtocolError)"),
        (Hang, "there is no whole answer within 0.3 seconds"),
        (Drip, "there is no whole answer within 0.3 seconds"),
    ],
)
async def test_what_cannot_be_used_is_said_in_words(
    said: bytes | type[Hang] | type[Drip], told: str, path: str
) -> None:
    async with IssuerServer() as server:
        server.instead[path] = said
        what = "configuration" if path == CONFIGURATION else "keys"
        # Whoever says something is waited for: a machine may be busy.
        seconds = 0.3 if said in (Hang, Drip) else 60.0
        assert await refusal(server, seconds=seconds) == told.replace("*", what)


async def test_an_answer_of_any_length_is_cut_off_at_its_bound() -> None:
    async with IssuerServer() as server:
        server.instead[KEYS] = b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (8 * MAX_ANSWER_BYTES)
        assert "longer than" in await refusal(server)
        kept = set_of(signer())
        server.instead[KEYS] = answer(kept + b" " * (MAX_ANSWER_BYTES - len(kept)))
        assert len(await Published(server.url).keys()) == 1


async def test_the_configuration_must_be_the_issuers_own_and_name_its_keys() -> None:
    async with IssuerServer() as server:
        for issuer in (None, "", "https://login.example", server.url + "/", [server.url]):
            server.instead[CONFIGURATION] = configuration(issuer=issuer, jwks_uri=server.url + KEYS)
            assert await refusal(server) == "the configuration is of another issuer"
        for place in (None, "", 5, ["x"], KEYS, "file:///etc/passwd", "ftp://127.0.0.1/", "gopher://127.0.0.1"):
            server.instead[CONFIGURATION] = configuration(issuer=server.url, jwks_uri=place)
            assert await refusal(server) == "the configuration names no address of keys that may be asked"
        server.instead[CONFIGURATION] = configuration(issuer=server.url, jwks_uri="http://a:b/")
        assert await refusal(server) == "there is no connection, or it breaks (InvalidURL)"


async def test_an_issuer_that_is_not_there_is_a_failure() -> None:
    with socket.socket() as unheard:
        # A port that nobody else takes meanwhile.
        unheard.bind(("127.0.0.1", 0))
        server = IssuerServer(port=unheard.getsockname()[1])
        assert await refusal(server) == "there is no connection, or it breaks (ConnectError)"


async def test_the_whole_answer_has_one_deadline() -> None:
    async with IssuerServer() as server:
        server.instead[KEYS] = Drip
        async with within(2):
            await refusal(server, seconds=0.5)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that its own key has signed: (it, its key)."""
    folder = tmp_path_factory.mktemp("issuer")
    crt, key = folder / "crt.pem", folder / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    made += ["-keyout", str(key), "-out", str(crt), "-days", "30", "-subj", "/CN=issuer"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(made, check=True, capture_output=True)
    return crt, key


@pytest.fixture
def tls(certificate: tuple[Path, Path]) -> SSLContext:
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


@pytest.mark.program("openssl")
async def test_a_certificate_that_nobody_vouches_for_is_not_believed(tls: SSLContext) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    async with IssuerServer(tls=tls) as server:
        assert await refusal(server) == "there is no connection, or it breaks (ConnectError)"
        assert not server.asked


@pytest.mark.program("openssl")
async def test_a_company_may_vouch_for_its_own_issuer(
    tls: SSLContext, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    async with IssuerServer(tls=tls) as server, IssuerServer() as open_to_all:
        assert len(await Published(server.url).keys()) == 1
        # Who is asked over TLS leads nowhere else.
        server.instead[CONFIGURATION] = configuration(issuer=server.url, jwks_uri=open_to_all.url + KEYS)
        assert await refusal(server) == "the configuration names no address of keys that may be asked"
        assert not open_to_all.asked
