"""What is sent of a page makes the older one the newer one, and is no more than that takes."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.api.page.parts import Group, Leaf, Part, changes


def leaf(part_id: str, words: str = "") -> Leaf:
    return Leaf(part_id, f'<li id="{part_id}">{words}</li>')


def group(part_id: str, *parts: Part) -> Group:
    return Group(part_id, f'<ul id="{part_id}">', parts, "</ul>")


Tree = dict[str, str | tuple[str, list[str]]]
"""What a browser holds: of each id its HTML, or its empty HTML and the ids in it."""


def held(part: Part) -> Tree:
    """What a browser holds that was given the whole part."""
    if isinstance(part, Leaf):
        return {part.id: part.html}
    tree: Tree = {part.id: (part.start_tag + part.end_tag, [inner.id for inner in part.parts])}
    for inner in part.parts:
        tree |= held(inner)
    return tree


def apply(tree: Tree, old: Part | None, new: Part) -> Tree:
    """What the page's script does with the changes."""
    tree = dict(tree)
    sent = dict(changes(old, new))
    for part_id, change in sent.items():
        tree[part_id] = change if isinstance(change, str) else (change[0], change[1:])
    reached = [new.id]
    for part_id in reached:
        inner = tree[part_id]
        reached += [] if isinstance(inner, str) else inner[1]
    return {part_id: tree[part_id] for part_id in reached}


words = st.sampled_from(["", "a", "b"])
rows = st.lists(st.tuples(st.sampled_from("pqrst"), words), unique_by=lambda row: row[0], max_size=5)
pages = st.lists(st.tuples(st.sampled_from("ABC"), rows), unique_by=lambda body: body[0], max_size=3).map(
    lambda bodies: group(
        "page", leaf("head"), *[group(name, *[leaf(name + row, text) for row, text in inner]) for name, inner in bodies]
    )
)


@given(pages, pages)
def test_what_changed_makes_the_old_page_the_new_one(old: Group, new: Group) -> None:
    assert apply(held(old), old, new) == held(new)


@given(pages, pages)
def test_a_page_of_which_nobody_knows_what_it_shows_is_made_the_new_one(shown: Group, new: Group) -> None:
    assert apply(held(shown), None, new) == held(new)
    assert apply({}, None, new) == held(new)


@given(pages)
def test_nothing_is_sent_of_what_is_the_same(page: Group) -> None:
    assert not list(changes(page, page))


def test_a_new_line_on_top_costs_one_line() -> None:
    old = group("list", *[leaf(f"r{at}", "long") for at in range(50)])
    new = group("list", leaf("new", "words"), *old.parts[:49])
    sent = dict(changes(old, new))
    assert sent["list"] == ['<ul id="list"></ul>', "new", *[f"r{at}" for at in range(49)]]
    assert sent["new"] == '<li id="new">words</li>'
    assert len(sent) == 2


def test_a_group_comes_before_what_it_holds() -> None:
    assert [part_id for part_id, _ in changes(None, group("a", group("b", leaf("c"))))] == ["a", "b", "c"]


def test_a_line_that_changes_is_sent_alone() -> None:
    old, new = group("a", leaf("b", "1"), leaf("c", "1")), group("a", leaf("b", "1"), leaf("c", "2"))
    assert list(changes(old, new)) == [("c", '<li id="c">2</li>')]


def test_a_group_is_its_tags_and_all_within() -> None:
    assert group("a", group("b", leaf("c", "x"))).html == '<ul id="a"><ul id="b"><li id="c">x</li></ul></ul>'
