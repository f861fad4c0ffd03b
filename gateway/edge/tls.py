"""TLS on the public port: the certificate, and the handshake.

The handshake stands before the connection, as a protocol around it: it is asyncio's own (or uvloop's), which has a
deadline for it, and here it is counted from the first packet on. A connection whose handshake is not over is unknown to
everything behind, and would else be bounded by nothing but the machine's descriptors.

TLS 1.2 and 1.3, with Python's ciphers; ALPN offers `http/1.1` alone, so no client comes to think of HTTP/2; a client
cannot renegotiate. The certificate may be replaced while all runs: who shakes hands from then on is shown the new one.
"""

import asyncio
import ssl
from asyncio import sslproto
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from gateway.core.network import network_of
from gateway.pipeline.proxies import peer_of

SHUTDOWN_SECONDS = 5.0
"""For the client's part of the goodbye."""
_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python has no name for: dates are read here, and judged elsewhere."""
_ROUNDS = 8
"""More than a handshake has."""
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"


class CertificateUnusable(Exception):
    """`key`: `cert` or `key`, the file that is at fault. The text says what to do."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


class Certificate(NamedTuple):
    """A certificate and its key, ready for handshakes."""

    context: ssl.SSLContext
    begins_at: float
    """Seconds since 1970."""
    expires_at: float
    digest: bytes
    """Of both files, by which two are told apart."""


def load_certificate(cert: Path, key: Path) -> Certificate:
    """Read two PEM files, and shake hands with them once: what comes of it can serve.

    Raises `CertificateUnusable`.
    """
    chain, secret = _read("cert", cert), _read("key", key)
    if _BEGIN not in chain or _END not in chain:
        raise CertificateUnusable("cert", f"{cert} holds no certificate in PEM form ({_BEGIN.decode()})")
    if b"ENCRYPTED" in secret:
        raise CertificateUnusable("key", f"{key} is encrypted: decrypt it, with openssl pkey -in FILE -out NEW")
    if b"PRIVATE KEY-----" not in secret:
        raise CertificateUnusable("key", f"{key} holds no private key in PEM form")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        # A password is never asked for: there is nobody at this terminal.
        context.load_cert_chain(cert, key, password=lambda: b"")
    except (ssl.SSLError, OSError) as error:
        raise _unusable(error, cert, key) from None
    leaf = chain[chain.index(_BEGIN) : chain.index(_END) + len(_END)]
    told = _shown_by(context, leaf, cert)
    begins_at, expires_at = (ssl.cert_time_to_seconds(str(told[name])) for name in ("notBefore", "notAfter"))
    return Certificate(context, begins_at, expires_at, sha256(chain + b"\0" + secret).digest())


def _read(which: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CertificateUnusable(which, f"{file} cannot be read: {error.strerror}") from None


def _unusable(error: Exception, cert: Path, key: Path) -> CertificateUnusable:
    reason = (isinstance(error, ssl.SSLError) and error.reason) or type(error).__name__
    if reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
        # The last one: they are of two kinds, an elliptic key and an RSA certificate.
        return CertificateUnusable("key", f"{key} is not the key of the certificate in {cert}: give a pair")
    if reason in ("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK", "EE_MD_TOO_WEAK"):
        return CertificateUnusable("cert", f"{cert} is too weak for today's clients ({reason}): make a stronger one")
    return CertificateUnusable("cert", f"{cert} and {key} cannot be used ({reason}): is either of them damaged?")


def _shown_by(context: ssl.SSLContext, leaf: bytes, cert: Path) -> dict[str, Any]:
    """What a client that believes this very certificate reads off it, in a handshake in memory.

    Raises `CertificateUnusable`.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(_NO_CHECK_TIME)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        client.load_verify_locations(cadata=leaf.decode("ascii"))
        caller = client.wrap_bio(to_client, to_server)
        server = context.wrap_bio(to_server, to_client, server_side=True)
        for _ in range(_ROUNDS):
            for side in (caller, server):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        told = caller.getpeercert()
    except (ssl.SSLError, ValueError) as error:
        reason = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else type(error).__name__
        raise CertificateUnusable("cert", f"{cert} is no certificate that a client takes: {reason}") from None
    if not told:
        raise CertificateUnusable("cert", f"{cert} is no certificate that a client can read")
    return told


class Tls:
    """What stands before each connection. `certificate` may be replaced at any time. There are `most` sockets at a
    time, of one network half of them, unless it `is_proxy`. When there are as many, a newcomer gets the place of a
    handshake that has lasted for `spare_seconds`.
    """

    def __init__(
        self,
        certificate: Certificate,
        *,
        handshake_seconds: float,
        most: int,
        is_proxy: Callable[[str], bool],
        spare_seconds: float = 1.0,
    ) -> None:
        self.certificate = certificate
        self.sockets: dict[asyncio.Transport, str] = {}
        """Of all connections, those whose handshake is not over included, with the network of each."""
        self._of_networks: Counter[str] = Counter()
        self._shaking: dict[asyncio.Protocol, tuple[asyncio.Transport, float]] = {}
        """What will speak on those whose handshake is not over, the longest first, with the time of their first packet.
        """
        self._now = 0.0
        self._none_spare: set[str] = set()
        """Networks of which no handshake has lasted for long; empty: of all together."""
        self._spare_seconds = spare_seconds
        self._is_proxy = is_proxy
        self._handshake_seconds = handshake_seconds
        self._most = most
        self._protocols: dict[type, Any] = {}
        """By the kind of loop."""

    def around(self, connection: asyncio.Protocol, loop: asyncio.AbstractEventLoop) -> asyncio.BaseProtocol:
        """The protocol of a socket on which `connection` will speak, once the handshake is over."""
        kind = self._protocols.get(type(loop))
        if kind is None:
            kind = self._protocols[type(loop)] = _counted_by(self, _tls_of(loop))
        made: Any = kind(
            loop,
            connection,
            self.certificate.context,
            None,
            server_side=True,
            ssl_handshake_timeout=self._handshake_seconds,
            ssl_shutdown_timeout=SHUTDOWN_SECONDS,
        )
        made.speaker = connection
        protocol: asyncio.BaseProtocol = made
        return protocol

    def sweep(self, now: float) -> None:
        """Some time has passed."""
        self._now = now
        self._none_spare.clear()

    def shaken(self, connection: asyncio.Protocol) -> None:
        """Its handshake is over."""
        self._shaking.pop(connection, None)

    def arrived(self, socket: asyncio.Transport, connection: asyncio.Protocol) -> bool:
        """Whether it may come in: one too many costs no handshake."""
        address = peer_of(socket)
        network = network_of(address)
        if len(self.sockets) >= self._most and not self._make_room(""):
            return False
        if (
            network
            and self._of_networks[network] >= max(1, self._most // 2)
            and not self._is_proxy(address)
            and not self._make_room(network)
        ):
            return False
        self.sockets[socket] = network
        self._of_networks[network] += 1
        self._shaking[connection] = socket, self._now
        return True

    def left(self, socket: asyncio.Transport, connection: asyncio.Protocol) -> None:
        """It is closed, or as good as; a second time is nothing."""
        self._shaking.pop(connection, None)
        network = self.sockets.pop(socket, None)
        if network is None:
            return
        self._of_networks[network] -= 1
        if not self._of_networks[network]:
            del self._of_networks[network]

    def _make_room(self, network: str) -> bool:
        """End the handshakes that have lasted the longest, a hundredth of all, as `edge.room` does with connections."""
        if network in self._none_spare:
            return False
        since = self._now - self._spare_seconds
        spare = (
            (connection, socket)
            for connection, (socket, begun) in self._shaking.items()
            if begun <= since and network in ("", self.sockets[socket])
        )
        longest = list(islice(spare, max(1, self._most // 100)))
        for connection, socket in longest:
            self.left(socket, connection)
            socket.abort()
        if not longest:
            self._none_spare.add(network)
        return bool(longest)

    def close(self) -> None:
        """End every connection, and every handshake."""
        for socket in list(self.sockets):
            socket.abort()


def _tls_of(loop: asyncio.AbstractEventLoop) -> Any:
    """The loop's own TLS: uvloop's takes half the time."""
    if type(loop).__module__.startswith("uvloop"):
        from uvloop.loop import SSLProtocol  # type: ignore[attr-defined]  # its stubs leave it out

        return SSLProtocol
    return sslproto.SSLProtocol


def _counted_by(tls: Tls, protocol: Any) -> Any:
    """That protocol, telling `tls` when its socket comes and goes."""

    class Counted(protocol):  # type: ignore[misc]  # of a loop's own making
        socket: asyncio.Transport | None = None
        speaker: asyncio.Protocol

        def connection_made(self, transport: asyncio.Transport) -> None:
            if not tls.arrived(transport, self.speaker):
                transport.abort()
                return
            self.socket = transport
            super().connection_made(transport)

        def connection_lost(self, error: Exception | None) -> None:
            if self.socket is not None:
                tls.left(self.socket, self.speaker)
                self.socket = None
            super().connection_lost(error)

    return Counted
