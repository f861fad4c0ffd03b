"""What a pod lists is understood, bounded, and no further trusted than it must be."""

import pytest

from gateway.core.ports import FetchFailed
from gateway.discovery.models import LARGE_BYTES, MAX_CARDS, models_of
from tests.running import captured


def test_a_real_listing_is_understood() -> None:
    _, raw = captured("01-models.http")
    ((model,), odd) = models_of(raw.partition(b"\r\n\r\n")[2])
    assert (model.name, model.card["max_model_len"], odd) == ("smollm2", 2048, 0)


def test_a_listing_is_bounded_and_odd_names_are_counted() -> None:
    cards = ",".join(f'{{"id":"m{number}"}}' for number in range(1000))
    models, odd = models_of(f'{{"data":[{cards}]}}'.encode())
    assert (len(models), odd) == (MAX_CARDS, 1000 - MAX_CARDS)
    strange = b'{"data":[{"id":"a\\u0000"},{"id":""},{"id":7},{},7,{"id":"%b"},{"id":"fine"}]}' % (b"x" * 300)
    models, odd = models_of(strange)
    assert ([model.name for model in models], odd) == (["fine"], 6)
    for junk in (b"", b"[]", b'{"data":{}}', b"[" * 100_000, b"\xff"):
        with pytest.raises(FetchFailed):
            models_of(junk)


def test_a_card_of_a_long_answer_keeps_only_what_is_short() -> None:
    long = b'{"data":[{"id":"m","max_model_len":8,"root":"%b","permission":[{}],"parent":null}]}' % (b"x" * LARGE_BYTES)
    ((model,), _) = models_of(long)
    assert model.card == {"id": "m", "max_model_len": 8, "parent": None}
