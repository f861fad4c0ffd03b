"""TLS on the public port: who is shaken hands with, and that all that holds without it holds with it.

A gateway in the test's process runs on asyncio's own TLS, one that is a process of its own on uvloop's.
"""

import asyncio
import json
import shutil
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx2
import pytest
import yaml

from gateway.edge.bounds import Bounds
from gateway.limits.keys import digest, new_key
from tests.certificates import Pair, certificate
from tests.fakes import STREAM_HEAD, Close, Hang, ScriptedPod, answer, chunk
from tests.integration.test_process import SECONDS, fetch, run, started, until_ready
from tests.integration.test_reload import reloaded, text_of
from tests.raw import Answer, RawClient, ask, chat, request
from tests.running import Running, running
from tests.turns import within

WHOLE = b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
GOOD = answer(WHOLE)
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
FINAL = b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM = STREAM_HEAD + chunk(TOKEN + FINAL + DONE) + b"0\r\n\r\n"


@asynccontextmanager
async def visitor(port: int, pair: Pair) -> AsyncIterator[RawClient]:
    """A connection with TLS, its handshake over."""
    client = RawClient(*await asyncio.open_connection("127.0.0.1", port, ssl=pair.believed()))
    try:
        yield client
    finally:
        client.leave()


async def asked(port: int, pair: Pair, data: bytes) -> Answer:
    async with visitor(port, pair) as client:
        client.send(data)
        return await client.answer()


def shown(client: RawClient) -> str:
    """Whom the certificate names that this connection was shown."""
    told = client.writer.get_extra_info("peercert")
    return str(dict(pair[0] for pair in told["subject"])["commonName"])


async def test_requests_and_streams_pass_and_a_connection_is_kept(tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    async with (
        ScriptedPod([[GOOD], [STREAM]]) as pod,
        running([pod], server={"tls": pair.settings}) as gateway,
        visitor(gateway.port, pair) as client,
    ):
        client.send(request(chat(), key=gateway.key))
        assert (await client.answer()).body == WHOLE
        client.send(request(chat(stream=True), key=gateway.key))
        streamed = await client.answer()
        assert (streamed.status, streamed.clean, streamed.events[-1]) == (200, True, DONE)
        told = client.writer.get_extra_info("ssl_object")
        assert (told.version(), told.selected_alpn_protocol()) == ("TLSv1.3", "http/1.1")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
async def test_nothing_older_than_tls_1_2_is_spoken(tmp_path: Path, version: ssl.TLSVersion) -> None:
    pair = certificate(tmp_path)
    client = pair.believed()
    client.minimum_version = client.maximum_version = version
    # Python's own floor is not what is asked here.
    client.set_ciphers("ALL:@SECLEVEL=0")
    async with ScriptedPod([[GOOD]]) as pod, running([pod], server={"tls": pair.settings}) as gateway:
        opening = asyncio.open_connection("127.0.0.1", gateway.port, ssl=client)
        if version is ssl.TLSVersion.TLSv1_2:
            spoken = RawClient(*await opening)
            spoken.send(request(chat(), key=gateway.key))
            assert (await spoken.answer()).status == 200
            spoken.leave()
        else:
            # asyncio's handshake ends without the alert that OpenSSL has ready.
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await opening


@pytest.mark.program("openssl")
async def test_a_client_cannot_renegotiate(tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    async with ScriptedPod([[GOOD]]) as pod, running([pod], server={"tls": pair.settings}) as gateway:
        process = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-tls1_2", "-connect", f"127.0.0.1:{gateway.port}"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        async with asyncio.timeout(SECONDS):
            await process.stdout.readuntil(b"Verify return code")
            process.stdin.write(b"R\n")
            said = await process.stdout.read()
            await process.wait()
        assert b"RENEGOTIATING" in said
        # OpenSSL 3 refuses it anyway; those before it must be told.
        tls = gateway.gateway.edge.tls
        assert tls is not None
        assert tls.certificate.context.options & ssl.OP_NO_RENEGOTIATION
        assert b"no renegotiation" in said.lower() or b"handshake failure" in said.lower(), said


async def test_who_does_not_shake_hands_in_time_is_let_go(tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    assert Bounds().head_seconds <= 10
    bounds = Bounds(head_seconds=0.3)
    async with (
        ScriptedPod([[GOOD]]) as pod,
        running([pod], server={"tls": pair.settings}, bounds=bounds) as gateway,
    ):
        silent, slow = await RawClient.connect(gateway.port), await RawClient.connect(gateway.port)
        slow.send(b"\x16\x03\x01")
        assert await silent.closed()
        assert await slow.closed()
        silent.leave()
        slow.leave()
        tls = gateway.gateway.edge.tls
        assert tls is not None
        assert not tls.sockets


@pytest.mark.parametrize(("proxies", "most"), [([], 2), (["127.0.0.0/8"], 4)])
async def test_a_handshake_beyond_the_bound_is_not_begun(tmp_path: Path, proxies: list[str], most: int) -> None:
    pair = certificate(tmp_path)
    server = {"tls": pair.settings, "trusted_proxies": proxies}
    async with ScriptedPod([[GOOD]]) as pod, running([pod], server=server) as gateway:
        tls = gateway.gateway.edge.tls
        assert tls is not None
        tls._most = 4
        waiting = [await RawClient.connect(gateway.port) for _ in range(most)]
        async with within(5):
            while len(tls.sockets) < most:
                await asyncio.sleep(0.01)
        # Half of them, if they come from one network that is no proxy's.
        another = await RawClient.connect(gateway.port)
        assert await another.closed()
        another.leave()
        waiting.pop().leave()
        async with within(5):
            while len(tls.sockets) == most:
                await asyncio.sleep(0.01)
        assert (await asked(gateway.port, pair, request(chat(), key=gateway.key))).status == 200
        for each in waiting:
            each.leave()


@pytest.mark.parametrize("addresses", [("127.0.0.2",), ("127.0.0.2", "127.0.0.3")])
async def test_a_newcomer_gets_the_place_of_a_handshake_that_has_lasted_for_long(
    tmp_path: Path, addresses: tuple[str, ...]
) -> None:
    """Whether all of the room is taken, or its own network's half: else a few addresses keep everybody out."""
    pair = certificate(tmp_path)
    bounds = Bounds(head_seconds=60, spare_seconds=0.3)
    async with (
        ScriptedPod([[GOOD]]) as pod,
        running([pod], server={"tls": pair.settings}, bounds=bounds) as gateway,
    ):
        edge = gateway.gateway.edge
        tls = edge.tls
        assert tls is not None
        tls._most = 4
        waiting = []
        for address in addresses * 2:
            streams = await asyncio.open_connection("127.0.0.1", gateway.port, local_addr=(address, 0))
            waiting.append(RawClient(*streams))
        async with within(5):
            while len(tls.sockets) < len(waiting):
                await asyncio.sleep(0.01)
            since = edge.now
            while edge.now <= since + 2 * bounds.spare_seconds:
                await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", gateway.port, local_addr=("127.0.0.2", 0), ssl=pair.believed()
        )
        newcomer = RawClient(reader, writer)
        newcomer.send(request(chat(), key=gateway.key))
        assert (await newcomer.answer()).status == 200
        assert await waiting[0].closed()
        assert len(tls.sockets) == len(waiting)
        # Its handshake is over: it is not ended for the next one.
        assert len(tls._shaking) == len(waiting) - 1
        for each in (newcomer, *waiting):
            each.leave()


async def test_plain_http_and_junk_end_without_a_word_and_harm_nobody(tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    async with ScriptedPod([[GOOD]]) as pod, running([pod], server={"tls": pair.settings}) as gateway:
        for junk in (request(chat(), key=gateway.key), b"\0" * 4096, b"\x16\x03\x01\xff\xff" + b"\xff" * 65536):
            client = await RawClient.connect(gateway.port)
            client.send(junk)
            told = b""
            with suppress(ConnectionResetError):
                async with within(5):
                    told = await client.reader.read(65536)
            # An alert of TLS, at most.
            assert not told.startswith(b"HTTP/")
            client.leave()
        assert not pod.requests
        assert (await asked(gateway.port, pair, request(chat(), key=gateway.key))).status == 200


@pytest.mark.parametrize("how", ["aborts", "says goodbye"])
async def test_a_client_that_leaves_frees_its_pod(tmp_path: Path, how: str) -> None:
    pair = certificate(tmp_path)
    async with (
        ScriptedPod([[STREAM_HEAD + chunk(TOKEN), Hang]]) as pod,
        running([pod], server={"tls": pair.settings}) as gateway,
        visitor(gateway.port, pair) as client,
    ):
        client.send(request(chat(stream=True), key=gateway.key))
        await client.reader.readuntil(TOKEN)
        if how == "aborts":
            client.leave()
        else:
            client.writer.close()
        async with within(5):
            await pod.peer_left.wait()
        assert (await gateway.last_line())["outcome"] == "client_left"


async def test_a_cut_answer_is_cut_for_the_client_as_well(tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    part = b"x" * 65_536
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 4000000\r\n\r\n"
    async with (
        ScriptedPod([[head, *([part] * 30), Close]]) as pod,
        running([pod], server={"tls": pair.settings}) as gateway,
        visitor(gateway.port, pair) as client,
    ):
        client.send(request(chat(), key=gateway.key))
        found = await client.answer()
        assert found.status == 200
        assert not found.clean


async def test_a_refused_body_ends_with_the_refusal(tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    server = {"tls": pair.settings, "max_body_bytes": 2048}
    async with ScriptedPod([[GOOD]]) as pod, running([pod], server=server) as gateway:
        found = await asked(gateway.port, pair, request(b" " * 500_000, key=gateway.key))
        assert (found.status, found.error["code"], found.headers["connection"]) == (413, "body_too_large", "close")


async def test_a_reader_that_stalls_holds_up_its_pod_and_is_cut(tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    many = chunk(TOKEN * 1000)
    bounds = Bounds(stalled_seconds=0.5)
    async with (
        ScriptedPod([[STREAM_HEAD, *([many] * 400), Hang]]) as pod,
        running([pod], server={"tls": pair.settings}, bounds=bounds) as gateway,
        visitor(gateway.port, pair) as client,
    ):
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport that reads
        client.send(request(chat(stream=True), key=gateway.key))
        async with within(10):
            await pod.peer_left.wait()
        assert (await gateway.last_line())["outcome"] == "client_left"


# The certificate, while it runs.


async def renewed(gateway: Running, old: Pair, new: Pair) -> None:
    """Put another pair in the place of one that is in force."""
    state = gateway.gateway.config_state
    loaded_at = state.value.loaded_at
    shutil.copy(new.key, old.key)
    shutil.copy(new.cert, old.cert)
    async with within(5):
        while state.value.loaded_at == loaded_at or state.value.error:
            await state.wait_changed()


async def test_a_renewed_certificate_is_shown_from_the_next_handshake_on(tmp_path: Path) -> None:
    pair, new = certificate(tmp_path, "old"), certificate(tmp_path, "new")
    file = tmp_path / "poolgate.yaml"
    async with ScriptedPod([[GOOD]]) as pod:
        file.write_text(text_of([pod], server={"tls": pair.settings}))
        async with running([], file=file) as gateway, visitor(gateway.port, pair) as before:
            assert shown(before) == "old"
            await renewed(gateway, pair, new)
            async with visitor(gateway.port, new) as after:
                assert shown(after) == "new"
            # What was there goes on.
            before.send(request(chat(), key=gateway.key))
            assert (await before.answer()).status == 200
            assert gateway.sample("poolgate_config_reloads_total", result="applied") == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("another key", "is not the key of the certificate"),
        ("expired", "has expired on"),
        ("junk", "holds no certificate in PEM form"),
        ("gone", "cannot be read"),
    ],
)
async def test_a_bad_pair_is_refused_and_the_old_one_stays(tmp_path: Path, fault: str, words: str) -> None:
    pair, other = certificate(tmp_path, "old"), certificate(tmp_path, "other", days=-1 if fault == "expired" else 30)
    believed = pair.believed()
    file = tmp_path / "poolgate.yaml"

    def change() -> None:
        match fault:
            case "another key":
                shutil.copy(other.key, pair.key)
            case "expired":
                shutil.copy(other.key, pair.key)
                shutil.copy(other.cert, pair.cert)
            case "junk":
                pair.cert.write_text("-----BEGIN NOTHING-----\n")
            case "gone":
                pair.cert.unlink()

    async with ScriptedPod([[GOOD]]) as pod:
        file.write_text(text_of([pod], server={"tls": pair.settings}))
        async with running([], file=file) as gateway:
            await reloaded(gateway, change)
            # A look may have come between the two files, which is told as well, and soon over.
            async with within(5):
                while words not in gateway.gateway.config_state.value.error:
                    await gateway.gateway.config_state.wait_changed()
            assert gateway.sample("poolgate_config_reloads_total", result="refused") >= 1
            client = RawClient(*await asyncio.open_connection("127.0.0.1", gateway.port, ssl=believed))
            assert shown(client) == "old"
            client.leave()


async def test_another_place_of_the_certificate_takes_effect_at_once_but_not_its_end(tmp_path: Path) -> None:
    pair, new = certificate(tmp_path, "old"), certificate(tmp_path, "new")
    file = tmp_path / "poolgate.yaml"
    async with ScriptedPod([[GOOD]]) as pod:
        file.write_text(text_of([pod], server={"tls": pair.settings}))
        async with running([], file=file) as gateway:
            tls, state = gateway.gateway.edge.tls, gateway.gateway.config_state
            assert tls is not None
            first = tls.certificate
            file.write_text(text_of([pod], server={"tls": new.settings}))
            async with within(5):
                while tls.certificate is first:
                    await asyncio.sleep(0.01)
            assert not state.value.waits_for_restart
            async with visitor(gateway.port, new) as client:
                assert shown(client) == "new"
            await reloaded(gateway, lambda: file.write_text(text_of([pod])))
            assert state.value.waits_for_restart == ("server.tls.cert", "server.tls.key")
            async with visitor(gateway.port, new) as client:
                assert shown(client) == "new"


# As a process, on uvloop.


def settings(directory: Path, pod: ScriptedPod, pair: Pair) -> tuple[Path, str]:
    """(a configuration's file, a key)."""
    key_id, key = new_key()
    keys = directory / "keys.yaml"
    keys.write_text(yaml.safe_dump({"keys": [{"id": key_id, "sha256": digest(key.encode()), "team": "tests"}]}))
    file = directory / "poolgate.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "server": {"host": "127.0.0.1", "port": 0, "ops_port": 0, "tls": pair.settings},
                "discovery": {"pods": [{"url": pod.url, "pool": "chat"}]},
                "auth": {"keys_file": str(keys)},
            }
        )
    )
    return file, key


async def test_a_process_says_https_and_serves_it_and_its_ops_port_stays_plain(tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    async with ScriptedPod([[STREAM], [STREAM_HEAD + chunk(TOKEN), Hang]]) as pod:
        file, key = settings(tmp_path, pod, pair)
        async with started("serve", "--config", str(file)) as process:
            words = await process.said(r"serves on https://127\.0\.0\.1:(\d+), operations on http://127\.0\.0\.1:(\d+)")
            port, ops_port = int(words[1]), int(words[2])
            await until_ready(ops_port)
            assert (await fetch(ops_port, "/livez")).status == 200
            streamed = await asked(port, pair, request(chat(stream=True), key=key))
            assert (streamed.status, streamed.clean, streamed.events[-1]) == (200, True, DONE)
            async with visitor(port, pair) as client:
                client.send(request(chat(stream=True), key=key))
                await client.reader.readuntil(TOKEN)
                client.leave()
                async with within(5):
                    await pod.peer_left.wait()
            plain = await RawClient.connect(port)
            plain.send(request(chat(), key=key))
            async with within(5):
                assert not (await plain.reader.read(65536)).startswith(b"HTTP/")
            plain.leave()
            process.signal(signal.SIGINT)
            await process.ended_well()


async def test_the_chat_command_believes_the_issuer_that_the_environment_names(tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    async with ScriptedPod([[STREAM]]) as pod, running([pod], server={"tls": pair.settings}) as gateway:
        told = ("chat", "hi", "--url", f"https://localhost:{gateway.port}", "--key", gateway.key)
        good = await asyncio.to_thread(run, *told, more={"SSL_CERT_FILE": str(pair.cert)})
        assert (good.returncode, good.stdout) == (0, "ab\n"), good.stderr
        bad = await asyncio.to_thread(run, *told)
        assert bad.returncode == 1
        assert "is not believed here" in bad.stderr
        assert "SSL_CERT_FILE" in bad.stderr


async def test_the_chat_command_says_that_a_port_speaks_no_tls() -> None:
    async with ScriptedPod([[STREAM]]) as pod, running([pod]) as gateway:
        told = await asyncio.to_thread(run, "chat", "hi", "--url", f"https://127.0.0.1:{gateway.port}", "--key", "k")
        assert told.returncode == 1
        assert "does not speak TLS" in told.stderr


async def test_an_sdks_http_client_gets_answers_over_tls(tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    async with ScriptedPod([[GOOD]]) as pod, running([pod], server={"tls": pair.settings}) as gateway:
        async with httpx2.AsyncClient(verify=pair.believed(), trust_env=False) as client:
            answers = [
                await client.post(
                    f"https://localhost:{gateway.port}/v1/chat/completions",
                    json=chat(),
                    headers={"authorization": f"Bearer {gateway.key}"},
                )
                for _ in range(3)
            ]
        assert [json.loads(each.content)["usage"]["prompt_tokens"] for each in answers] == [1, 1, 1]


# `poolgate check`.


@pytest.mark.parametrize(
    ("fault", "level", "words"),
    [
        ("none", "", ""),
        ("missing", "error", "server.tls.cert: "),
        ("one alone", "error", "TLS wants both files"),
        ("another key", "error", "is not the key of the certificate"),
        ("another kind", "error", "is not the key of the certificate"),
        ("encrypted", "error", "is encrypted: decrypt it"),
        ("expired", "error", "has expired on"),
        ("not yet", "warning", "is valid from"),
        ("soon", "warning", "expires on"),
        ("open", "warning", "can be read by everybody"),
        ("a client's", "error", "is no certificate that a client takes"),
    ],
)
async def test_check_judges_the_files(tmp_path: Path, fault: str, level: str, words: str) -> None:
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID

    days = {"expired": -1.0, "soon": 3.0}.get(fault, 30.0)
    usage = ExtendedKeyUsageOID.CLIENT_AUTH if fault == "a client's" else ExtendedKeyUsageOID.SERVER_AUTH
    pair = certificate(tmp_path, days=days, begins_in_days=2 if fault == "not yet" else -1, usage=usage)
    if fault == "missing":
        pair.cert.unlink()
    elif fault == "another key":
        shutil.copy(certificate(tmp_path, "other").key, pair.key)
    elif fault == "another kind":
        other = rsa.generate_private_key(65537, 2048)
        pair.key.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    elif fault == "encrypted":
        pair.key.write_text(pair.key.read_text().replace("BEGIN PRIVATE", "BEGIN ENCRYPTED PRIVATE"))
    elif fault == "open":
        pair.key.chmod(0o644)
    async with ScriptedPod([[GOOD]]) as pod:
        file, _ = settings(tmp_path, pod, pair)
        if fault == "one alone":
            told = yaml.safe_load(file.read_text())
            del told["server"]["tls"]["key"]
            file.write_text(yaml.safe_dump(told))
        found = await asyncio.to_thread(run, "check", str(file))
    assert found.returncode == (2 if level == "error" else 0), found.stderr
    assert words in found.stderr
    if not level:
        assert found.stderr == ""
    elif level == "warning":
        assert "warning" in found.stderr


async def test_a_start_without_a_usable_certificate_says_what_to_do(tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    pair.key.unlink()
    async with ScriptedPod([[GOOD]]) as pod:
        file, _ = settings(tmp_path, pod, pair)
        found = await asyncio.to_thread(run, "serve", "--config", str(file))
    assert found.returncode == 2
    assert "server.tls.key" in found.stderr
    assert "cannot be read" in found.stderr
    assert "Traceback" not in found.stderr


async def test_without_tls_the_port_is_plain() -> None:
    async with ScriptedPod([[GOOD]]) as pod, running([pod]) as gateway:
        assert (await ask(gateway.port, request(chat(), key=gateway.key))).status == 200
