"""A file that changed is loaded whole, once it stays; one that cannot be used changes nothing, and is told of once."""

import logging
import os
from pathlib import Path

import pytest

from gateway.api.status import ConfigState
from gateway.config import Config, ConfigFile
from gateway.core.cell import Cell
from gateway.reload import Reload, waits_for_restart


class Following:
    """A file that is followed, by hand, and what came of it."""

    def __init__(self, file: Path, text: str = "server: {}\n") -> None:
        self.file = file
        self.applied: list[Config] = []
        self.counted: list[str] = []
        self.now = 100.0
        self.state = Cell(ConfigState(self.now))
        file.write_text(text)
        source = ConfigFile(file, {"POOLGATE_SERVER__DRAIN_SECONDS": "7"}, {"server.max_body_bytes": 2048})
        self.reload = Reload(
            source,
            source.load(),
            apply=self.apply,
            state=self.state,
            counted=self.counted.append,
            clock=lambda: self.now,
        )

    def apply(self, config: Config) -> None:
        self.applied.append(config)

    async def looks(self, times: int = 2) -> None:
        for _ in range(times):
            self.now += 1.0
            await self.reload.look()

    async def after(self, text: str) -> None:
        """What the file holds now, and two looks at it."""
        self.file.write_text(text)
        await self.looks()


@pytest.fixture
def at(tmp_path: Path) -> Following:
    return Following(tmp_path / "poolgate.yaml")


async def test_the_file_of_the_start_is_nothing_new(at: Following) -> None:
    await at.looks(5)
    assert (at.applied, at.counted, at.state.value) == ([], [], ConfigState(100.0))


async def test_a_change_between_the_start_and_the_first_look_is_seen(at: Following) -> None:
    await at.after("server: {ops_token: new}\n")
    assert at.counted == ["applied"]


async def test_a_new_file_is_in_force_at_once_with_the_flags_and_the_environment_of_the_start(
    at: Following, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await at.looks()
    await at.after(
        "server: {ops_token: s3cret, max_body_bytes: 4096, drain_seconds: 9}\n"
        "pools: {chat: {policy: least}}\nmodels: {a: {to: [{model: b}]}}\n"
    )
    (config,) = at.applied
    assert (config.server.max_body_bytes, config.server.drain_seconds, config.server.ops_token) == (2048, 7, "s3cret")
    assert (at.counted, at.state.value) == (["applied"], ConfigState(at.now))
    assert [record.getMessage() for record in caplog.records] == [
        "a new configuration is in force; it differs in server.ops_token, pools.chat, models.a"
    ]
    await at.looks(3)
    assert at.counted == ["applied"]


async def test_a_file_is_loaded_only_once_it_stays_as_it_is(at: Following) -> None:
    """An editor writes in pieces, and each of them may be valid."""
    await at.looks()
    pieces = (
        "discovery:\n  pods:\n",
        "    - {url: 'http://a:1', pool: chat}\n",
        "    - {url: 'http://b:1', pool: chat}\n",
    )
    for end in (1, 2, 3):
        at.file.write_text("".join(pieces[:end]))
        await at.looks(1)
    assert (at.applied, at.counted) == ([], [])
    await at.looks(1)
    (config,) = at.applied
    assert len(config.discovery.pods) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("server: {prot: 1}\npools: {a: {policy: x}}\n", ("1: server.prot", "2: pools.a.policy")),
        ("server: [\n", ("not valid YAML",)),
        ("a: 2024-13-45\n", ("not valid YAML",)),
        ("", ("must hold sections",)),
        ("upstream: {api_key: '${GONE}'}\n", ("GONE",)),
    ],
)
async def test_an_invalid_file_is_refused_and_told_in_one_line(
    at: Following, caplog: pytest.LogCaptureFixture, text: str, words: tuple[str, ...]
) -> None:
    await at.after("server: {ops_token: good}\n")
    loaded_at = at.state.value.loaded_at
    caplog.clear()
    await at.after(text)
    await at.looks(3)
    assert at.counted == ["applied", "refused"]
    assert len(at.applied) == 1
    (record,) = caplog.records
    assert (record.levelno, "\n" in record.getMessage()) == (logging.ERROR, False)
    assert at.state.value.loaded_at == loaded_at
    for word in words:
        assert word in record.getMessage()
        assert word in at.state.value.error
    await at.after("server: {ops_token: good}\n")
    assert (at.state.value, at.counted) == (ConfigState(loaded_at), ["applied", "refused"])
    await at.after("server: {ops_token: better}\n")
    assert (at.state.value, at.counted) == (ConfigState(at.now), ["applied", "refused", "applied"])


async def test_a_file_that_is_gone_is_refused_until_it_is_back(at: Following) -> None:
    await at.looks()
    at.file.rename(at.file.with_name("aside"))
    await at.looks(3)
    assert at.counted == ["refused"]
    assert "cannot be read" in at.state.value.error
    at.file.with_name("aside").rename(at.file)
    await at.looks()
    assert (at.counted, at.state.value.error) == (["refused"], "")


async def test_what_cannot_be_put_in_force_is_refused_and_ends_nothing(
    at: Following, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(config: Config) -> None:
        raise RuntimeError("a fault of ours")

    reload = Reload(
        ConfigFile(at.file, {}), Config(), apply=fails, state=at.state, counted=at.counted.append, clock=lambda: 0.0
    )
    at.file.write_text("server: {ops_token: new}\n")
    for _ in range(4):
        await reload.look()
    assert at.counted == ["refused"]
    assert "a fault of ours" in at.state.value.error
    assert sum(record.exc_info is not None for record in caplog.records) == 1


async def test_a_secret_that_changed_is_read_when_the_file_is_touched(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("one")
    at = Following(tmp_path / "poolgate.yaml", f"upstream: {{api_key: 'file:{secret}'}}\n")
    await at.looks()
    secret.write_text("two")
    await at.looks()
    assert at.applied == []
    os.utime(at.file, ns=(1, 1))
    await at.looks()
    assert [config.upstream.api_key for config in at.applied] == ["two"]


async def test_what_the_process_was_built_with_waits_for_a_restart_and_is_told(
    at: Following, caplog: pytest.LogCaptureFixture
) -> None:
    await at.after("server: {port: 8001, ops_token: new}\ndiscovery: {namespaces: [models]}\n")
    assert at.counted == ["applied"]
    assert at.state.value.waits_for_restart == ("server.port", "discovery.namespaces")
    (warning,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "server.port, discovery.namespaces" in warning.getMessage()
    # And no more once it is as it was.
    await at.after("server: {ops_token: new}\n")
    assert not at.state.value.waits_for_restart


def test_configured_pods_wait_for_a_restart_only_if_their_mode_does() -> None:
    pods = [{"url": "http://a:1", "pool": "a"}]
    static, more = Config.model_validate({"discovery": {"pods": pods}}), Config.model_validate({"discovery": {}})
    other = Config.model_validate({"discovery": {"pods": [*pods, {"url": "http://b:1", "pool": "a"}]}})
    assert waits_for_restart(static, other) == ()
    assert waits_for_restart(static, more) == ("discovery.mode", "discovery.pods")
    assert waits_for_restart(more, static) == ("discovery.mode", "discovery.pods")
