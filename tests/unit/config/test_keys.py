"""A keys file is read whole or not at all."""

from pathlib import Path

import pytest

from gateway.config.faults import ConfigError
from gateway.config.keys import load_keys


def test_the_contracts_example_of_a_keys_file_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(
        'keys: [{id: a1b2c3d4, sha256: "' + "a" * 64 + '", team: acme, models: ["*"], requests_per_minute: null,'
        " tokens_per_minute: null, concurrent: null, priority: 0, expires: null, disabled: false, debug: false,"
        ' allow_fields: [], forwards_user: false, note: ""}]\n'
    )
    assert load_keys(file)[0].tenant.team == "acme"


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ({"id": "a"}, ":5: keys.1.id: the id 'a' is that of the key on line 2 too: give each key its own"),
        ({"sha256": f'"{"0" * 64}"'}, ":6: keys.1.sha256: this is the key on line 3 again: keep one of them"),
    ],
)
def test_a_key_or_an_id_that_stands_twice_is_refused_with_both_lines(
    tmp_path: Path, second: dict[str, str], told: str
) -> None:
    """Of two entries of one key the one that revokes it might be the one that loses."""
    file = tmp_path / "keys.yaml"
    lines = {"id": "b", "sha256": f'"{"1" * 64}"', "team": "acme"} | second
    of_second = "\n  ".join(f"{name}: {value}" for name, value in lines.items())
    file.write_text(f'keys:\n- id: a\n  sha256: "{"0" * 64}"\n  team: acme\n- {of_second}\n')
    with pytest.raises(ConfigError) as caught:
        load_keys(file)
    assert str(caught.value) == f"{file}{told}"


@pytest.mark.parametrize(
    ("expires", "seconds"),
    [
        ("2030-01-01T00:00:00Z", 1_893_456_000),
        ("'2030-01-01T00:00:00'", 1_893_456_000),
        ("2030-01-01 01:00:00 +01:00", 1_893_456_000),
        ("2030-01-01", 1_893_456_000),
        ("null", None),
        ("2030", ValueError),
        ("'90'", ValueError),
        ("90d", ValueError),
        ("-1", ValueError),
        ("1.5", ValueError),
    ],
)
def test_an_expiry_is_a_time_and_never_a_count_of_seconds(
    tmp_path: Path, expires: str, seconds: int | type[ValueError] | None
) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(f'keys:\n- id: a\n  sha256: "{"0" * 64}"\n  team: acme\n  expires: {expires}\n')
    if isinstance(seconds, type):
        with pytest.raises(ConfigError, match=r":5: keys\.0\.expires: give a time such as 2027-01-01T00:00:00Z"):
            load_keys(file)
    else:
        assert load_keys(file)[0].tenant.expires_at == seconds


def test_an_id_may_not_be_one_of_an_issuers_tokens(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(f'keys: [{{id: jwt-1, sha256: "{"0" * 64}", team: acme}}]')
    with pytest.raises(ConfigError, match=r":1: keys\.0\.id: ids that begin with 'jwt-' are those of an issuer's"):
        load_keys(file)


def test_the_limits_of_a_key_are_its_tenants(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(
        f'keys:\n- id: a\n  sha256: "{"a" * 64}"\n  team: acme\n  requests_per_minute: 5\n  tokens_per_minute: 6\n'
        "  concurrent: 7\n  priority: -1\n  forwards_user: true\n"
    )
    (entry,) = load_keys(file)
    tenant = entry.tenant
    assert (tenant.requests_per_minute, tenant.tokens_per_minute, tenant.concurrent) == (5, 6, 7)
    assert (tenant.priority, tenant.forwards_user) == (-1, True)
