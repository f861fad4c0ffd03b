"""A file that changed is loaded whole, once it stays; one that cannot be used changes nothing, and is told of once."""

import logging
import os
from pathlib import Path

import pytest

from gateway.api.seen import ConfigState
from gateway.config.keys import load_keys
from gateway.config.reading import ConfigFile
from gateway.config.whole import Config
from gateway.core.cell import Cell
from gateway.limits.keys import KeyEntry
from gateway.reload import MAX_TOLD, FollowedConfig, FollowedKeys, Reload, waits_for_restart


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
            [FollowedConfig(source, source.load(), self.apply)],
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

    followed = FollowedConfig(ConfigFile(at.file, {}), Config(), fails)
    reload = Reload([followed], state=at.state, counted=at.counted.append, clock=lambda: 0.0)
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


# The keys.


def entries(*key_ids: str, **more: object) -> str:
    """A keys file's text, with keys of these ids."""
    values = "".join(f", {name}: {value}" for name, value in more.items())
    lines = [f"- {{id: {key_id}, sha256: '{key_id.encode().hex():0>64}', team: t{values}}}" for key_id in key_ids]
    return "\n".join(["keys:" if lines else "keys: []", *lines]) + "\n"


class FollowingKeys:
    """A keys file and a configuration that are followed, by hand, and what came of it."""

    def __init__(self, directory: Path) -> None:
        self.file, self.config = directory / "keys.yaml", directory / "poolgate.yaml"
        self.file.write_text(entries("a", "b"))
        self.config.write_text("server: {}\n")
        self.current = self.before = load_keys(self.file)
        self.counted: list[str] = []
        self.now = 100.0
        self.state = Cell(ConfigState(self.now))
        source = ConfigFile(self.config, {})
        self.reload = Reload(
            [
                FollowedConfig(source, source.load(), lambda config: None),
                FollowedKeys(self.file, self.current, self.use),
            ],
            state=self.state,
            counted=self.counted.append,
            clock=lambda: self.now,
        )

    def use(self, now: tuple[KeyEntry, ...]) -> None:
        self.before, self.current = self.current, now

    async def looks(self, times: int = 2) -> None:
        for _ in range(times):
            self.now += 1.0
            await self.reload.look()

    async def after(self, text: str) -> None:
        """What the keys file holds now, and two looks at it."""
        self.file.write_text(text)
        await self.looks()

    @property
    def ids(self) -> list[str]:
        return [entry.tenant.key_id for entry in self.current]


@pytest.fixture
def keys(tmp_path: Path) -> FollowingKeys:
    return FollowingKeys(tmp_path)


async def test_the_keys_of_the_start_are_nothing_new(keys: FollowingKeys) -> None:
    await keys.looks(5)
    assert (keys.counted, keys.state.value) == ([], ConfigState(100.0))


async def test_new_keys_are_in_force_at_once_and_their_ids_are_told(
    keys: FollowingKeys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await keys.after(entries("a", "c"))
    assert (keys.ids, keys.counted, keys.state.value) == (["a", "c"], ["applied"], ConfigState(keys.now))
    await keys.after(entries("c", "a"))
    await keys.after("# A comment.\n" + entries("c", "a"))
    assert keys.counted == ["applied"]
    await keys.after(entries("a", note="x") + entries("c").partition("\n")[2])
    assert [record.getMessage() for record in caplog.records] == [
        "new keys are in force: added c; removed b",
        "new keys are in force: changed a",
    ]


async def test_who_is_behind_an_entry_that_did_not_change_stays_the_same_object(keys: FollowingKeys) -> None:
    a, b = (entry.tenant for entry in keys.current)
    await keys.after(entries("b", "c") + entries("a", priority=3).partition("\n")[2])
    assert [entry.tenant is b for entry in keys.current] == [True, False, False]
    assert keys.current[2].tenant is not a
    _, c, new_a = keys.current
    await keys.after(entries("c") + entries("a", priority=3, disabled="true").partition("\n")[2])
    assert [entry.tenant for entry in keys.current] == [c.tenant, new_a.tenant]


async def test_an_empty_list_revokes_every_key_and_is_warned_of(
    keys: FollowingKeys, caplog: pytest.LogCaptureFixture
) -> None:
    await keys.after("keys: []\n")
    assert (keys.current, keys.counted) == ((), ["applied"])
    (warning,) = caplog.records
    assert (warning.levelno, warning.getMessage()) == (
        logging.WARNING,
        "the keys file holds no key: nobody is let in by one",
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "write 'keys: []' if nobody is to be let in"),
        ("# keys:\n", "write 'keys: []' if nobody is to be let in"),
        ("keys:\n", "write 'keys: []' if nobody is to be let in"),
        ("{}\n", "write 'keys: []' if nobody is to be let in"),
        ("keys: [\n", "not valid YAML"),
        (entries("a", "b")[:-30], "keys.yaml:3: "),
        (entries("c", "a", teem="x"), "keys.0.teem: this key does not exist"),
        (entries("a", "a"), "keys.yaml:3: keys.1.id: the id 'a' is that of the key on line 2 too"),
        (entries("a", "b", expires=2030), "give a time such as 2027-01-01T00:00:00Z"),
    ],
)
async def test_a_file_with_a_fault_is_refused_whole_and_told_in_one_line(
    keys: FollowingKeys, caplog: pytest.LogCaptureFixture, text: str, told: str
) -> None:
    before = keys.current
    await keys.after(text)
    await keys.looks(3)
    assert (keys.current, keys.counted) == (before, ["refused"])
    (record,) = caplog.records
    assert (record.levelno, "\n" in record.getMessage()) == (logging.ERROR, False)
    assert record.getMessage().startswith("a change of the keys is refused, what was before stays in force: ")
    assert told in record.getMessage()
    assert told in keys.state.value.error
    assert keys.state.value.loaded_at == 100.0
    await keys.after(entries("a", "b"))
    assert (keys.current, keys.counted, keys.state.value) == (before, ["refused"], ConfigState(100.0))


async def test_a_file_that_vanished_revokes_nobody(keys: FollowingKeys) -> None:
    await keys.looks()
    keys.file.unlink()
    await keys.looks(3)
    assert (keys.ids, keys.counted) == (["a", "b"], ["refused"])
    assert "keys.yaml: cannot be read: No such file or directory" in keys.state.value.error
    await keys.after(entries("c"))
    assert (keys.ids, keys.counted, keys.state.value.error) == (["c"], ["refused", "applied"], "")


async def test_faults_of_both_files_are_told_until_each_is_mended(keys: FollowingKeys) -> None:
    keys.config.write_text("server: {port: 1}\n")
    await keys.looks()
    keys.config.write_text("serve: {}\n")
    await keys.after("keys: [a]\n")
    config_fault, keys_fault = keys.state.value.error.splitlines()
    assert ("serve: this key does not exist" in config_fault, "keys.0: " in keys_fault) == (True, True)
    await keys.after(entries("c"))
    assert keys.state.value.error == config_fault
    # What waits for a restart is told on, by whichever file a state comes from.
    assert keys.state.value.waits_for_restart == ("server.port",)
    keys.config.write_text("server: {port: 1}\n")
    await keys.looks()
    assert keys.state.value.error == ""


async def test_many_faults_and_many_keys_are_told_shortly(
    keys: FollowingKeys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    many = [f"k{number}" for number in range(1000)]
    await keys.after(entries(*many, no="x"))
    assert len(keys.state.value.error.splitlines()) == MAX_TOLD
    assert keys.state.value.error.endswith(" and 980 more")
    await keys.after(entries("a", "b", *many))
    assert caplog.records[-1].getMessage().endswith("k18, k19 and 980 more")


async def test_keys_that_cannot_be_put_in_force_are_refused_and_end_nothing(
    keys: FollowingKeys, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(now: tuple[KeyEntry, ...]) -> None:
        raise RuntimeError("a fault of ours")

    reload = Reload(
        [FollowedKeys(keys.file, (), fails)], state=keys.state, counted=keys.counted.append, clock=lambda: 0.0
    )
    for _ in range(4):
        await reload.look()
    assert keys.counted == ["refused"]
    assert "a fault of ours" in keys.state.value.error
    assert sum(record.exc_info is not None for record in caplog.records) == 1
