"""Callers with an issuer's tokens, and users for whom an application asks, at a running gateway."""

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from joserfc.jwk import OctKey

from gateway.core.clock import Clock
from gateway.core.words import HOW_TO_INSTALL_EXTRAS
from gateway.limits.issuer import Pace
from tests.discovering import eventually
from tests.fakes import Leaps, ScriptedPod, answer
from tests.integration.balancing.scenes import GOOD
from tests.issuer import AUDIENCE, CONFIGURATION, KEYS, NEVER, Hang, IssuerServer, Signer, signer
from tests.raw import Answer, ask, chat, request
from tests.running import NO_LIMITS, Running, Side, running
from tests.turns import within

SECRET = "open webui's and ours"
TWO_MODELS = b'{"object":"list","data":[{"id":"m","object":"model"},{"id":"secret","object":"model"}]}'


@dataclass
class Scene:
    """A gateway that believes an issuer, before one pod."""

    running: Running
    issuer: IssuerServer
    pod: ScriptedPod
    monotonic: Leaps

    async def ask(self, key: str | None, headers: Mapping[str, str] | None = None, **more: Any) -> Answer:
        return await ask(self.running.port, request(chat(), key=key, headers=dict(headers or {}), **more))

    async def opens(self, key: str) -> bool:
        return (await self.ask(key)).status == 200

    async def waits_for(self, status: int, token: str) -> None:
        """Ask with a token again and again until that is the answer."""
        async with within(10):
            while (await self.ask(token)).status != status:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def scene(
    tmp_path: Path,
    *,
    side: Side = "edge",
    issuer: IssuerServer | None = None,
    auth: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
    tenant: Mapping[str, Any] | None = None,
    wall: float | None = None,
) -> AsyncIterator[Scene]:
    """See `Scene`. Of `auth` what is not said here; `tenant` is whose the gateway's own key is."""
    async with issuer or IssuerServer() as server, ScriptedPod([(GOOD,)], models=TWO_MODELS) as pod:
        jwt = {"issuer": server.url, "audience": AUDIENCE, "tenant_claim": "team"}
        settings = {
            "discovery": {"pods": [{"url": pod.url, "pool": "chat"}]},
            "auth": {"jwt": jwt, **(auth or {})},
            "limits": {"default": NO_LIMITS, **(limits or {})},
        }
        file = tmp_path / "poolgate.yaml"
        file.write_text(yaml.safe_dump(settings), "utf-8")
        monotonic = Leaps()
        clock = Clock(monotonic) if wall is None else Clock(monotonic, lambda: wall)
        async with running((), side=side, tenant=tenant, file=file, clock=clock) as gateway:
            yield Scene(gateway, server, pod, monotonic)


async def test_whoever_the_issuer_vouches_for_is_served(tmp_path: Path, side: Side) -> None:
    async with scene(tmp_path, side=side) as at:
        token = at.issuer.token()
        await at.waits_for(200, token)
        for headers in ({"Authorization": f"bearer  {token}"}, {"x-api-key": token}):
            assert (await at.ask(None, headers)).status == 200
        line = await at.running.last_line()
        assert line["tenant"] == "acme"
        assert line["key_id"].startswith("jwt-")
        assert at.running.sample("poolgate_tokens_total", model="m", kind="prompt", tenant="acme") >= 3
        # And so are those with keys.
        assert await at.opens(at.running.key)
        assert (await at.running.last_line())["tenant"] == "tests"


async def test_a_token_opens_the_models_that_tokens_may_use(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        await at.waits_for(200, at.issuer.token())
        listed = await ask(at.running.port, request(b"", key=at.issuer.token(), path="/v1/models", method="GET"))
        assert {each["id"] for each in json.loads(listed.body)["data"]} == {"m", "secret"}
    async with IssuerServer() as known:
        jwt = {"issuer": known.url, "audience": AUDIENCE, "tenant_claim": "team", "models": ["m"]}
        async with scene(tmp_path, auth={"jwt": jwt}) as at:
            await at.waits_for(200, known.token())
            port = at.running.port
            listed = await ask(port, request(b"", key=known.token(), path="/v1/models", method="GET"))
            assert {each["id"] for each in json.loads(listed.body)["data"]} == {"m"}
            refused = await ask(port, request(chat(model="secret"), key=known.token()))
            assert (refused.status, refused.error["code"]) == (403, "model_not_allowed")


async def test_a_refusal_says_why_in_the_words_of_its_api_and_nothing_more(tmp_path: Path, side: Side) -> None:
    async with scene(tmp_path, side=side) as at:
        await at.waits_for(200, at.issuer.token())
        mallory = signer("ES256", "mallory")
        for token, told in (
            (at.issuer.token(exp=1000), "the token has expired: get a new one"),
            (at.issuer.token(aud="canary"), "the token was made for another audience"),
            (at.issuer.token(mallory, sub="canary"), "the token was not signed by the issuer that is believed here"),
            ("Y2FuYXJ5.Y2FuYXJ5.Y2FuYXJ5", "the token is no signed JWT that can be read"),
        ):
            came = await at.ask(token)
            assert came.status == 401
            assert came.error == {
                "message": told,
                "type": "authentication_error",
                "param": None,
                "code": "invalid_api_key",
            }
            assert came.headers["www-authenticate"] == "Bearer"
            line = await at.running.last_line()
            assert (line["status"], line["code"], line["tenant"], line["key_id"]) == (
                401,
                "invalid_api_key",
                None,
                None,
            )
        came = await ask(at.running.port, request(chat(), key=at.issuer.token(exp=1000), path="/v1/messages"))
        assert json.loads(came.body)["type"] == "error"
        assert came.error["message"] == "the token has expired: get a new one"


async def test_an_odd_token_is_a_refusal_at_the_front_door_too(tmp_path: Path, side: Side) -> None:
    async with scene(tmp_path, side=side) as at:
        await at.waits_for(200, at.issuer.token())
        by = at.issuer.signers[0]
        for token in (
            by.sign(b"[" * 3000),
            by.sign(at.issuer.claims(), b"[" * 3000),
            by.sign(at.issuer.claims(), {"alg": ["ES256"], "kid": {"one": 1}}),
            by.sign(at.issuer.claims(exp=10**400, aud={}, sub=[], team=1e999)),
            b"..",
            b"\xff.\xff.\xff",
        ):
            came = await at.ask(None, {"x-api-key": token.decode("latin-1")})
            assert (came.status, came.error["code"]) == (401, "invalid_api_key")
        # The edge has a bound of its own for a header's line, which is no larger than that of a token.
        came = await at.ask(by.sign(at.issuer.claims(pad="x" * 15_000)).decode())
        assert (came.status, came.error["code"]) == (
            (431, "headers_too_large") if side == "edge" else (401, "invalid_api_key")
        )


async def test_while_the_issuer_was_never_heard_tokens_may_come_again_and_keys_are_served(
    tmp_path: Path, side: Side
) -> None:
    issuer = IssuerServer()
    issuer.instead[CONFIGURATION] = Hang
    async with scene(tmp_path, side=side, issuer=issuer) as at:
        came = await at.ask(issuer.token())
        assert (came.status, came.error["type"], came.error["code"]) == (503, "overloaded_error", "overloaded")
        assert 1 <= int(came.headers["retry-after"]) <= 5
        assert await at.opens(at.running.key)
        assert (await at.ask("junk")).status == 401
    issuer = IssuerServer()
    issuer.instead[KEYS] = answer(b"<html>")
    async with scene(tmp_path, side=side, issuer=issuer) as at:
        await issuer.asked_for(KEYS, 1)
        assert (await at.ask(issuer.token())).status == 503
        del issuer.instead[KEYS]
        await at.waits_for(200, issuer.token())


async def test_when_the_issuer_takes_another_key_the_new_one_opens_and_the_old_one_does_not(tmp_path: Path) -> None:
    old, new = signer(), signer("RS256", "two")
    async with scene(tmp_path) as at:
        before = at.issuer.token(old)
        await at.waits_for(200, before)
        at.issuer.signers[:] = [new]
        at.monotonic.ahead += 10
        assert await at.opens(before)
        assert at.issuer.asked.count(KEYS) == 1
        assert (await at.ask(at.issuer.token(new))).status == 401
        await at.waits_for(200, at.issuer.token(new))
        assert (await at.ask(before)).status == 401
        assert at.issuer.asked.count(KEYS) == 2


async def test_an_issuer_that_fails_ends_nobody_who_is_known(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        token = at.issuer.token()
        await at.waits_for(200, token)
        at.issuer.instead[KEYS] = answer(b'{"keys": 5}')
        at.monotonic.ahead += 10
        await at.ask(at.issuer.token(signer("ES256", "mallory")))
        await at.issuer.asked_for(KEYS, 2)
        assert await at.opens(token)
        assert await at.opens(at.issuer.token(sub="bob"))


async def test_callers_are_told_apart_by_whom_their_tokens_name(tmp_path: Path) -> None:
    rule = {"per": "key", "match": "jwt-*", "requests_per_minute": 2}
    by_user = {"per": "user", "match": "bob", "requests_per_minute": 1}
    async with scene(tmp_path, limits={"rules": [rule, by_user]}) as at:
        await at.waits_for(200, at.issuer.token(sub="somebody"))
        ann = [at.issuer.token(jti=str(n), exp=NEVER - n) for n in range(3)]
        assert [(await at.ask(token)).status for token in ann] == [200, 200, 429]
        bob = [at.issuer.token(sub="bob", jti=str(n)) for n in range(2)]
        assert [(await at.ask(token)).status for token in bob] == [200, 429]


def webui(**claims: Any) -> str:
    """What Open WebUI sends; None takes a claim away."""
    told = {"sub": "u-1", "email": "canary@b.example", "name": "canary", "role": "user", "iss": "open-webui"}
    told |= {"iat": 1000, "exp": NEVER} | claims
    named = {name: value for name, value in told.items() if value is not None}
    return Signer("HS256", OctKey.import_key(SECRET)).sign(named).decode()


PER_USER = {"rules": [{"per": "user", "requests_per_minute": 1}]}


async def test_each_user_of_an_application_has_his_own_limit(tmp_path: Path, side: Side) -> None:
    async with scene(tmp_path, side=side, limits=PER_USER, tenant={"forwards_user": True}) as at:
        key = at.running.key
        sent = ["u-1", "u-2", "u-1", "u%2D1", "", "", "a%0Ab"]
        statuses = [(await at.ask(key, {"X-OpenWebUI-User-Id": user})).status for user in sent]
        assert statuses == [200, 200, 429, 429, 200, 200, 400]
        # Whoever may not say so is asked for himself, however often.
        other = at.running.other_key
        assert [(await at.ask(other, {"X-OpenWebUI-User-Id": "u-1"})).status for _ in range(2)] == [200, 200]


async def test_with_a_secret_only_signed_users_are_believed(tmp_path: Path, side: Side) -> None:
    auth = {"forwarded_user_secret": SECRET}
    async with scene(tmp_path, side=side, auth=auth, limits=PER_USER, tenant={"forwards_user": True}) as at:
        key = at.running.key
        for headers, status in (
            ({"X-OpenWebUI-User-Jwt": webui()}, 200),
            ({"X-OpenWebUI-User-Jwt": webui(sub="u-2")}, 200),
            ({"X-OpenWebUI-User-Jwt": webui(iat=1001)}, 429),
            ({"X-OpenWebUI-User-Id": "u-1"}, 200),
            ({"X-OpenWebUI-User-Jwt": webui(exp=1300)}, 401),
            ({"X-OpenWebUI-User-Jwt": webui()[:-2]}, 401),
            ({"X-OpenWebUI-User-Jwt": "u-1"}, 401),
        ):
            came = await at.ask(key, headers)
            assert came.status == status
            if status == 401:
                assert came.error["code"] == "invalid_api_key"
                assert came.error["message"].startswith("the header x-openwebui-user-jwt ")
                assert (await at.running.last_line())["tenant"] == "tests"
        assert (await at.ask(at.running.other_key, {"X-OpenWebUI-User-Jwt": "u-1"})).status == 200


async def test_a_user_who_is_sent_twice_is_sent_by_nobody(tmp_path: Path, side: Side) -> None:
    async with scene(tmp_path, side=side, tenant={"forwards_user": True}) as at:
        sent = request(chat(), key=at.running.key)
        twice = sent.replace(b"\r\n\r\n", b"\r\nX-OpenWebUI-User-Id: u-1\r\nX-OpenWebUI-User-Id: u-2\r\n\r\n", 1)
        came = await ask(at.running.port, twice)
        assert (came.status, came.error["message"]) == (400, "the header x-openwebui-user-id came more than once")


async def test_who_it_was_is_in_no_line_no_series_no_error_and_at_no_pod(
    tmp_path: Path, side: Side, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "poolgate")
    auth = {"forwarded_user_secret": SECRET}
    tenant = {"forwards_user": True}
    async with scene(tmp_path, side=side, auth=auth, limits=PER_USER, tenant=tenant) as at:
        token = at.issuer.token(sub="canary-sub", email="canary@c.example", name="canary")
        await at.waits_for(200, token)
        signed = {"X-OpenWebUI-User-Jwt": webui(sub="canary-user"), "X-OpenWebUI-User-Id": "canary-user"}
        signed |= {"X-OpenWebUI-User-Email": "canary@d.example", "X-OpenWebUI-Task": "canary_generation"}
        answers = [await at.ask(at.running.key, signed) for _ in range(2)]
        answers += [await at.ask(token), await at.ask(at.issuer.token(sub="canary", aud="canary"))]
        answers += [await at.ask(at.running.key, {"X-OpenWebUI-User-Jwt": webui(iss="canary")})]
        assert [came.status for came in answers] == [200, 429, 429, 401, 401]
        await at.running.settled()
        said = at.running.out.getvalue() if at.running.lines() else b""
        said += at.running.gateway.metrics.exposition() + b"".join(at.pod.requests) + caplog.text.encode()
        said += b"".join(came.body + repr(came.headers).encode() for came in answers)
        assert b"jwt-" in said
        for secret in ("canary", token, SECRET, str(at.issuer.port)):
            assert secret.encode() not in said


async def test_a_thousand_bad_tokens_make_no_series_and_the_issuer_is_asked_at_its_own_pace(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with scene(tmp_path) as at:
        await at.waits_for(200, at.issuer.token())
        bad = [at.issuer.token(signer("ES256", "mallory"), sub=str(n), team=f"team-{n}") for n in range(1000)]
        await at.ask(bad[0])
        at.running.gateway.journal.observe()
        series = len(at.running.gateway.metrics.exposition().splitlines())
        for token in bad:
            await at.ask(token)
        at.running.gateway.journal.observe()
        assert len(at.running.gateway.metrics.exposition().splitlines()) == series
        # Once, where the machine is not busy.
        assert at.issuer.asked.count(KEYS) <= 1 + (loop.time() - began) / Pace().ask_soon


async def test_a_gateway_that_authenticates_nobody_asks_no_issuer(tmp_path: Path) -> None:
    async with scene(tmp_path, auth={"jwt": None, "forwarded_user_secret": SECRET}) as at:
        assert (await at.ask(at.issuer.token())).error["message"] == "this API key is unknown, disabled or expired"
        await eventually(lambda: at.running.gateway.fleet.value.asked)
        assert not at.issuer.asked


def test_without_the_library_a_gateway_that_wants_it_says_what_to_install() -> None:
    program = """
import io, sys
class Missing:
    def find_spec(self, name, path, target=None):
        if name == "joserfc":
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Missing())
from gateway.app import Gateway
from gateway.parts import CannotStart
from gateway.config.reading import load_config
pods = {"discovery.pods": [{"url": "http://127.0.0.1:1", "pool": "chat"}]}
Gateway(load_config(None, {}, pods), (), access_out=io.BytesIO()).close()
assert "httpx2" not in sys.modules
for auth in {"auth.jwt": {"issuer": "https://a", "audience": "b"}}, {"auth.forwarded_user_secret": "x" * 16}:
    config = load_config(None, {}, pods | auth)
    Gateway(config, None, access_out=io.BytesIO()).close()
    try:
        Gateway(config, (), access_out=io.BytesIO())
    except CannotStart as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    want = "auth.jwt and auth.forwarded_user_secret want the package joserfc, which is missing: "
    assert done.stdout.splitlines() == [want + HOW_TO_INSTALL_EXTRAS] * 2
