"""Inputs made of a target's seeds: for pytest, and where atheris has no wheel."""

from hypothesis import strategies as st

from tests.fuzz.target import Target


@st.composite
def inputs(draw: st.DrawFn, target: Target) -> bytes:
    """A seed with a few places cut out, doubled, replaced or filled; now and then any bytes at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=min(target.max_bytes, 200)))
    made = bytearray(draw(st.sampled_from(list(target.seeds))))
    pieces = st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from(list(target.tokens) or [b"\0"]))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(made)))
        end = min(len(made), start + draw(st.integers(0, 8)))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            del made[start:end]
        elif kind == 1:
            made[start:start] = made[start:end]
        else:
            made[start : end if kind == 2 else start] = draw(pieces)
    return bytes(made[: target.max_bytes])
