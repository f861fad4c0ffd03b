"""How what is measured, or comes from outside, is written: pure."""

import json

HOW_TO_INSTALL_EXTRAS = "pip install --require-hashes -r requirements/extras.lock"
"""In a checkout; the image has them."""
_UNITS = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))


def how_long(seconds: float) -> str:
    """A duration in its two largest units: `8s`, `3m 20s`, `2h 0m`, `4d 3h`; as the status page's script writes it."""
    whole = max(0, int(seconds))
    largest = next((at for at, (_, size) in enumerate(_UNITS) if whole >= size), len(_UNITS) - 1)
    parts = []
    for unit, size in _UNITS[largest : largest + 2]:
        count, whole = divmod(whole, size)
        parts.append(f"{count}{unit}")
    return " ".join(parts)


def one_line(value: str, most: int) -> str:
    """A string from anywhere as a part of one line of a log, so many characters at most: what would end the line,
    colour a terminal or turn its direction is escaped, as JSON would."""
    cut = value if len(value) <= most else f"{value[:most]}…"
    if cut.isprintable():
        return cut
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in cut)


def readable(value: str, most: int | None = None) -> str:
    """A string from outside, without what UTF-8 cannot say; cut to so many characters."""
    return value[:most].encode("utf-8", "replace").decode("utf-8")
