"""Whatever stands in a keys file, and however it is written, one entry of it changes alone."""

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.cli.keys_file import in_lines, in_one_line, keys_in, with_disabled, with_key

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@example([("\x85", False), ("\u2028", True)], 0, 2, "\x85\u2029")
@given(st.lists(st.tuples(WORDS, st.booleans()), min_size=1, max_size=4), st.integers(0, 3), st.integers(0, 6), WORDS)
def test_an_entry_is_added_or_disabled_beside_texts_of_all_kinds(
    said: list[tuple[str, bool]], at: int, column: int, team: str
) -> None:
    """In lines at any column, or each within one line."""
    text = "keys:\n"
    for number, (note, in_one) in enumerate(said):
        entry = {"id": f"k{number}", "sha256": "x", "note": note}
        text += f"{' ' * column}- {in_one_line(entry)}\n" if in_one else in_lines(entry, column)
    before = keys_in(text)
    assert [entry["note"] for entry in before] == [note for note, _ in said]
    new = {"id": "new", "team": team}
    assert keys_in(with_key(text, new)) == [*before, new]
    at %= len(before)
    before[at]["disabled"] = True
    assert keys_in(with_disabled(text, at)) == before
