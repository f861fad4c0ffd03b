"""How the page looks: in the light, in the dark, on a phone. What is seen by eye is in docs/images."""

from typing import Any

import pytest

from tests.browser.driver import IN_CHROMIUM, Browser, Page
from tests.browser.scene import LIVE, Gateway

pytestmark = IN_CHROMIUM

PHONE = {"viewport": {"width": 400, "height": 800}, "isMobile": True, "hasTouch": True}
OPEN_ALL = "document.querySelectorAll('details').forEach(each => each.open = true)"
# Pairs of texts that lie upon each other. What is for screen readers only is clipped away, what is folded is not there.
OVERLAPS = """(() => {
  const clips = (element) => getComputedStyle(element).clipPath !== 'none';
  const clipped = (element) => element && (clips(element) || clipped(element.parentElement));
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const text = walker.currentNode;
    if (!text.data.trim() || !text.parentElement.checkVisibility() || clipped(text.parentElement)) continue;
    const range = document.createRange();
    range.selectNodeContents(text);
    for (const box of range.getClientRects()) if (box.width > 1) found.push({ box, words: text.data.trim() });
  }
  const across = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left);
  const down = (a, b) => Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
  const over = ({ box: a }, { box: b }) => across(a, b) > 2 && down(a, b) > 4;
  return found.flatMap((one, at) => found.slice(at + 1).filter((other) => over(one, other)).map(
    (other) => `${one.words} | ${other.words}`));
})()"""
# How light a colour is, from 0 to 1, of an element's computed style.
LIGHTNESS = """((selector, property) => {
  const [red, green, blue] = getComputedStyle(document.querySelector(selector))[property].match(/[\\d.]+/g).map(Number);
  return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255;
})"""


@pytest.mark.parametrize(
    "options",
    [
        {"colorScheme": "light"},
        {"colorScheme": "dark"},
        {"colorScheme": "light", **PHONE},
    ],
    ids=["light", "dark", "phone"],
)
async def test_axe_finds_nothing(browser: Browser, calm: Gateway, options: dict[str, Any]) -> None:
    async with browser.page(calm.url, **options) as page:
        await page.until(LIVE)
        await page.evaluate(OPEN_ALL)
        assert await page.violations() == []


async def test_axe_would_find_something(browser: Browser, calm: Gateway) -> None:
    async with browser.page(calm.url) as page:
        await page.evaluate("document.querySelector('main').append(document.createElement('button'))")
        (found,) = await page.violations(within="button")
        assert found.startswith("button-name at button")


async def test_in_the_dark_the_page_is_dark_and_its_text_light(browser: Browser, calm: Gateway) -> None:
    async def lightness(page: Page) -> tuple[float, float]:
        return (
            await page.evaluate(f"{LIGHTNESS}('body', 'backgroundColor')"),
            await page.evaluate(f"{LIGHTNESS}('tr[data-pod] th', 'color')"),
        )

    async with browser.page(calm.url, colorScheme="dark") as page:
        ground, ink = await lightness(page)
        assert (ground < 0.15, ink > 0.75) == (True, True)
    async with browser.page(calm.url, colorScheme="light") as page:
        ground, ink = await lightness(page)
        assert (ground > 0.9, ink < 0.25) == (True, True)


@pytest.mark.parametrize("width", [320, 400, 860, 861, 1180, 1181, 1920])
async def test_nothing_overlaps_or_leaves_the_page(browser: Browser, calm: Gateway, width: int) -> None:
    async with browser.page(calm.url, viewport={"width": width, "height": 800}) as page:
        await page.until(LIVE)
        for opening in ("", OPEN_ALL):
            await page.evaluate(opening)
            assert await page.evaluate("document.scrollingElement.scrollWidth") <= width
            assert await page.evaluate(OVERLAPS) == []


async def test_what_overlaps_is_found(browser: Browser, calm: Gateway) -> None:
    async with browser.page(calm.url) as page:
        await page.evaluate("document.styleSheets[0].insertRule('#tenants { margin-top: -60px }')")
        assert await page.evaluate(OVERLAPS) != []


async def test_on_a_phone_the_states_are_in_sight_without_scrolling_aside(browser: Browser, calm: Gateway) -> None:
    async with browser.page(calm.url, **PHONE) as page:
        edges = await page.evaluate(
            "[...document.querySelectorAll('tr[data-pod] .state')].map(cell => cell.getBoundingClientRect().right)"
        )
        assert len(edges) == 4
        assert max(edges) <= 400
