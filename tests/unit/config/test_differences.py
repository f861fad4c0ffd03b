"""What differs between two configurations is told by its keys."""

from gateway.config.differences import differences
from gateway.config.reading import load_config


def test_two_configurations_differ_in_the_keys_that_are_told() -> None:
    before = load_config(None, {}, {"pools": {"a": {"policy": "p2c"}, "b": {}}, "models.x": {"to": [{"model": "y"}]}})
    flags = {"pools": {"a": {"policy": "p2c", "queue_limit": 1}, "c": {}}, "server.port": 1}
    now = load_config(None, {}, {**flags, "models.x": {"to": [{"model": "z"}]}})
    assert differences(before, now) == ("server.port", "pools.a.queue_limit", "pools.b", "pools.c", "models.x.to")
    assert differences(now, now) == ()
