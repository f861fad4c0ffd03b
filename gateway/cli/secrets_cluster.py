"""Secrets of the cluster that a pod runs in, asked for by its service account: `get` by name, and `create`.

The `kubernetes` package is not wanted for two requests. A fresh cluster is not there at once, nor are its network and
its DNS, so what may heal by itself is asked again, with growing pauses, for two minutes in all. That is safe: of two
equal creations the second one hears that the Secret exists.

Nothing that a server says is repeated but its status and its reason, one word: an answer may quote what was sent.
"""

import asyncio
import logging
import ssl
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import httpx2

from gateway import __version__
from gateway.cli.refused import Refused
from gateway.cli.secrets_plan import Content, NotMade, Place

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
LABELS = {"app.kubernetes.io/part-of": "poolgate", "app.kubernetes.io/managed-by": "poolgate-secrets"}
PATIENCE_SECONDS = 120.0
"""For all that is asked again, taken together."""
ANSWER_SECONDS = 10.0
"""For one answer, to its last byte."""
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0
HEALS = frozenset((429, 500, 502, 503, 504))

log = logging.getLogger("poolgate.secrets")


class ClusterSecrets:
    """The cluster's Secrets. Made by `opened`."""

    def __init__(self, client: httpx2.AsyncClient, patience_seconds: float) -> None:
        self._client = client
        self._until = asyncio.get_running_loop().time() + patience_seconds
        self._told = ""

    @classmethod
    @asynccontextmanager
    async def opened(
        cls,
        environment: Mapping[str, str],
        service_account: Path,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> AsyncIterator[Self]:
        """The cluster that this pod runs in; nothing is asked yet.

        Raises `Refused` outside of one.
        """
        host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise Refused("--in-cluster is for a pod: KUBERNETES_SERVICE_HOST is not set; elsewhere use --folder")
        token, trust = _credentials(service_account)
        headers = {
            b"accept": b"application/json",
            b"authorization": b"Bearer " + token,
            b"user-agent": f"poolgate/{__version__}".encode(),
        }
        url = f"https://{f'[{host}]' if ':' in host else host}:{port}"
        # Without the environment: no proxy leads to the API server, and .netrc would put itself before the token.
        # Without limits of its own: _once has one for the whole answer, where these begin anew with each read.
        async with httpx2.AsyncClient(
            base_url=url, headers=headers, verify=trust, timeout=None, trust_env=False
        ) as client:
            yield cls(client, patience_seconds)

    async def read(self, place: Place) -> Content | None:
        """A Secret's entries; None: it does not exist."""
        answer = await self._ask("get", place)
        if answer.status_code == 404:
            return None
        if answer.status_code != 200:
            raise _refusal("get", place, answer)
        try:
            content = answer.json().get("data") or {}
            return {str(name): b64decode(value, validate=True) for name, value in content.items()}
        except (ValueError, AttributeError, TypeError, NotBase64):
            raise NotMade(f"what comes for the Secret {place} is none: is that the API server?") from None

    async def create(self, place: Place, content: Content) -> bool:
        """Make a Secret; False: it exists."""
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": place.secret, "namespace": place.namespace, "labels": LABELS},
            "type": "Opaque",
            "data": {name: b64encode(value).decode("ascii") for name, value in content.items()},
        }
        answer = await self._ask("create", place, secret)
        if answer.status_code == 409:
            return False
        if answer.status_code == 404:
            raise NotMade(f"the namespace {place.namespace} does not exist: create it, and run this again")
        if answer.status_code != 201:
            raise _refusal("create", place, answer)
        return True

    async def _ask(self, verb: str, place: Place, secret: Any = None) -> httpx2.Response:
        """The answer, whatever it says, unless it may heal by itself."""
        loop, pause = asyncio.get_running_loop(), FIRST_PAUSE_SECONDS
        while True:
            wanted = 0.0
            try:
                answer = await self._once(verb, place, secret)
            except TimeoutError:
                why = f"does not answer within {ANSWER_SECONDS:g} seconds"
            except httpx2.HTTPError as error:
                if _is_distrust(error):
                    raise NotMade(
                        f"{self._client.base_url} is not vouched for by the service account's ca.crt: is it the "
                        "cluster's API server?"
                    ) from None
                # Its text may quote a header of ours.
                why = f"cannot be reached ({type(error).__name__})"
            else:
                if answer.status_code not in HEALS:
                    return answer
                why = f"answers with status {answer.status_code}"
                wanted = _retry_after(answer)
            left = self._until - loop.time()
            if left <= 0:
                raise NotMade(f"the API server at {self._client.base_url} {why}: run this again when it is well")
            if why != self._told:
                log.warning("the API server at %s %s; it is asked again", self._client.base_url, why)
                self._told = why
            await asyncio.sleep(min(max(pause, wanted), left))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _once(self, verb: str, place: Place, secret: Any) -> httpx2.Response:
        path = f"/api/v1/namespaces/{place.namespace}/secrets"
        async with asyncio.timeout(ANSWER_SECONDS):
            if verb == "create":
                return await self._client.post(path, json=secret)
            return await self._client.get(f"{path}/{place.secret}")


def _credentials(service_account: Path) -> tuple[bytes, ssl.SSLContext]:
    """(The token, whom to trust)."""
    try:
        token = (service_account / "token").read_bytes().strip()
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trust.load_verify_locations(service_account / "ca.crt")
    except (OSError, ssl.SSLError) as error:
        why = type(error).__name__ if isinstance(error, ssl.SSLError) else error.strerror
        raise Refused(
            f"the service account in {service_account} cannot be used ({why}): give the pod one, with "
            "automountServiceAccountToken: true"
        ) from None
    return token, trust


def _is_distrust(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _retry_after(answer: httpx2.Response) -> float:
    told = answer.headers.get("retry-after", "")
    return min(float(told), LONGEST_PAUSE_SECONDS) if told.isascii() and told.isdecimal() else 0.0


def _refusal(verb: str, place: Place, answer: httpx2.Response) -> NotMade:
    status = answer.status_code
    where = f"secrets in the namespace {place.namespace}: {place.secret}"
    if status == 401:
        return NotMade(f"{where}: the API server does not accept the service account's token (401)")
    if status == 403:
        # RBAC cannot narrow create to names: what is to be made has none yet.
        narrowly = f" (resourceNames: [{place.secret}])" if verb == "get" else ""
        return NotMade(
            f"{where}: we may not {verb} it (403): bind a Role to the pod's service account that allows {verb} on "
            f"secrets{narrowly} there"
        )
    return NotMade(f"{where}: {verb} is answered with status {status}{_reason(answer)}")


def _reason(answer: httpx2.Response) -> str:
    try:
        reason = str(answer.json()["reason"])
    except (ValueError, KeyError, TypeError):
        return ""
    return f" {reason}" if reason.isalpha() and len(reason) < 40 else ""  # such as Invalid
