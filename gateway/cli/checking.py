"""What is wrong, or doubtful, in a configuration, in the keys file that it names, and with what it points to.

An error is what keeps the gateway from starting, or cannot heal by itself. What is not there at this moment, or was
perhaps not meant, is a warning.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from stat import S_IROTH
from typing import Any, Literal

from gateway.cli.figures import counted
from gateway.config.environment import one_underscore
from gateway.config.faults import ConfigError, Fault
from gateway.config.keys import load_keys
from gateway.config.reading import Settings, load_settings
from gateway.config.whole import Config
from gateway.core.clock import Clock
from gateway.core.globs import overlaps
from gateway.edge.tls import CertificateUnusable, load_certificate
from gateway.limits.keys import KeyEntry
from gateway.reload import day

SOON_SECONDS = 7 * 86_400.0
"""Who renews certificates does it weeks before."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding."""

    level: Literal["error", "warning"]
    fault: Fault

    def line(self) -> str:
        """`poolgate: FILE:LINE: KEY: TEXT`, a warning as `FILE:LINE: warning: KEY: TEXT`."""
        fault = self.fault
        if self.level == "error":
            return f"poolgate: {fault}"
        where = fault.source if fault.line is None else f"{fault.source}:{fault.line}"
        return ": ".join(part for part in (where, "warning", fault.key, fault.text) if part)


@dataclass(frozen=True, slots=True)
class Found:
    """All of them."""

    file: Path
    problems: tuple[Problem, ...]
    summary: str = ""

    @property
    def valid(self) -> bool:
        """Without an error."""
        return all(problem.level == "warning" for problem in self.problems)

    def lines(self) -> Iterator[str]:
        """For people."""
        return (problem.line() for problem in self.problems)

    def told(self) -> dict[str, Any]:
        """For machines."""
        problems = [
            {
                "level": problem.level,
                "file": problem.fault.source,
                "line": problem.fault.line,
                "key": problem.fault.key,
                "text": problem.fault.text,
            }
            for problem in self.problems
        ]
        return {"file": str(self.file), "valid": self.valid, "summary": self.summary, "problems": problems}


def read_alone(file: Path) -> Found:
    """By the file itself and nothing else."""
    try:
        settings = load_settings(file, {}, file_alone=True)
    except ConfigError as error:
        return Found(file, _errors(error))
    doubts = tuple(_doubts(file, settings))
    return Found(file, doubts, f"{_pods_of(settings.config)}; nothing but this file was read")


async def check_all(file: Path, environment: Mapping[str, str]) -> Found:
    """With the environment, the keys file, secrets, and what is asked of the network."""
    # Here: `--offline` needs no client of anything.
    from gateway.cli import first_key, reach

    try:
        settings = load_settings(file, environment)
    except ConfigError as error:
        return Found(file, _errors(error))
    config = settings.config
    problems = list(_doubts(file, settings))
    problems += [_warning(name, None, "", f"is not read: write {right}") for name, right in one_underscore(environment)]
    keys: tuple[KeyEntry, ...] = ()
    if config.auth.mode == "keys":
        key_file, nobody = config.auth.keys_file, first_key.no_file(config.auth.keys_file)
        try:
            if nobody is None:
                keys = load_keys(key_file)
                nobody = first_key.no_key(key_file, keys) if config.auth.jwt is None else None
        except ConfigError as error:
            problems += _errors(error)
        if nobody is not None:
            line = settings.line_of("auth", "keys_file")
            problems.append(Problem("error", Fault(str(file), line, "auth.keys_file", nobody)))
    problems += _certificate(file, settings)
    for trouble in await reach.troubles(config, environment):
        line = settings.line_of(*trouble.key.split("."))
        level: Literal["error", "warning"] = "error" if trouble.lasting else "warning"
        problems.append(Problem(level, Fault(str(file), line, trouble.key, trouble.text)))
    return Found(file, tuple(problems), f"{_pods_of(config)}, {_keys_of(keys)}")


def _errors(error: ConfigError) -> tuple[Problem, ...]:
    return tuple(Problem("error", fault) for fault in error.faults)


def _warning(source: str, line: int | None, key: str, text: str) -> Problem:
    return Problem("warning", Fault(source, line, key, text))


def _doubts(file: Path, settings: Settings) -> Iterator[Problem]:
    """What was perhaps not meant."""
    for both in overlaps(settings.config.explicit_globs()):
        yield _warning(
            str(file),
            settings.line_of("pools", both.pool),
            "",
            f"pools {both.pool!r} and {both.other_pool!r} may both serve models such as {both.name!r} "
            f"(globs {both.glob!r} and {both.other_glob!r}): such a name goes to the pool with the oldest ready pod "
            "that lists it, in static mode to the one whose pod stands first",
        )
    for place, network in enumerate(settings.config.server.trusted_proxies):
        if not network.prefixlen:
            yield _warning(
                str(file),
                settings.line_of("server", "trusted_proxies", str(place)),
                f"server.trusted_proxies.{place}",
                f"{network} is everybody: whoever writes X-Forwarded-For chooses his address, and bounds by address do "
                "not hold. Name the networks of your proxies",
            )
    for doubt in settings.config.doubtful_targets():
        key, _, text = doubt.partition(": ")
        yield _warning(str(file), settings.line_of("models", key.partition(".")[2]), key, text)


def _certificate(file: Path, settings: Settings) -> Iterator[Problem]:
    """What is wrong with the certificate of the public port, and its key."""
    cert, key = settings.config.server.tls.cert, settings.config.server.tls.key
    if cert is None or key is None:
        return

    def said(level: Literal["error", "warning"], which: str, text: str) -> Problem:
        return Problem(level, Fault(str(file), settings.line_of("server", "tls", which), f"server.tls.{which}", text))

    try:
        found = load_certificate(cert, key)
    except CertificateUnusable as error:
        yield said("error", error.key, str(error))
        return
    now = Clock().wall()
    if found.expires_at <= now:
        yield said("error", "cert", f"{cert} has expired on {day(found.expires_at)}: clients refuse it; renew it")
    elif found.begins_at > now:
        yield said("warning", "cert", f"{cert} is valid from {day(found.begins_at)} on: clients refuse it until then")
    elif found.expires_at - now < SOON_SECONDS:
        yield said("warning", "cert", f"{cert} expires on {day(found.expires_at)}: renew it")
    if key.stat().st_mode & S_IROTH:
        yield said("warning", "key", f"{key} can be read by everybody here: chmod 600 it; a Secret: defaultMode 0440")


def _pods_of(config: Config) -> str:
    discovery = config.discovery
    if discovery.mode == "static":
        return counted(len(discovery.pods), "pod")
    return f"pods in {', '.join(discovery.namespaces)}"


def _keys_of(keys: Iterable[KeyEntry]) -> str:
    now = Clock().wall()
    states = [key.state(now) for key in keys]
    idle = sum(state != "active" for state in states)
    return f"{counted(len(states), 'key')}{f' ({idle} disabled or expired)' if idle else ''}"
