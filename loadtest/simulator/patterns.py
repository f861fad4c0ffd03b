r"""A text that a regular expression matches, for `structured_outputs` and a schema's `pattern`.

The part of the syntax that grammars share: literals, escapes, classes, groups, alternatives, quantifiers,
anchors. Repetitions without an upper bound are kept short.
"""

from __future__ import annotations

import re
from random import Random

_LONGEST_REPEAT = 6
_WORD = "abcdefghijklmnopqrstuvwxyz"
_CLASSES = {"d": "0123456789", "w": _WORD, "s": " ", "D": _WORD, "W": " ", "S": _WORD}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}
_GROUP_OPENING = re.compile(r"\?(?::|P?<\w+>)")
_PRINTABLE = "".join(map(chr, range(32, 127)))


class BadPattern(ValueError):
    """Says what is wrong in the words of vLLM's grammar compiler, if there is one we know."""


def check_pattern(pattern: str) -> None:
    """Raises BadPattern."""
    try:
        re.compile(pattern)
    except re.error as error:
        kind = "unclosed group" if "unterminated subpattern" in error.msg else error.msg
        mark = " " * ((error.pos or 0) + 4) + "^"
        quoted = f'invalid regex "{pattern}" (in regex): regex parse error:\n    {pattern}\n{mark}\nerror: {kind}'
        raise BadPattern(f"at 1(8): {quoted}\n   1 | start: /{pattern}/\n{' ' * 14}^") from None


def matching(pattern: str, chance: Random) -> str:
    """A text that matches all of `pattern`, which `check_pattern` has let through."""
    return _Reader(pattern, chance).alternatives()


class _Reader:
    """Reads the pattern from left to right and writes as it goes."""

    def __init__(self, pattern: str, chance: Random) -> None:
        self._pattern = pattern
        self._chance = chance
        self._at = 0

    def alternatives(self) -> str:
        written = [self._concatenation()]
        while self._next("|"):
            written.append(self._concatenation())
        return self._chance.choice(written)

    def _concatenation(self) -> str:
        parts = []
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            start = self._at
            first = self._atom()
            least, most = self._quantifier()
            end = self._at
            parts.extend([first] * min(least, 1))
            for _ in range(self._chance.randint(least, most) - min(least, 1)):
                self._at = start  # again, with other luck
                parts.append(self._atom())
            self._at = end
        return "".join(parts)

    def _atom(self) -> str:
        if self._next("("):
            opening = _GROUP_OPENING.match(self._pattern, self._at)
            if opening is not None:
                self._at = opening.end()
            written = self.alternatives()
            self._next(")")
            return written
        if self._next("["):
            return self._chance.choice(self._class())
        letter = self._take()
        if letter == "\\" and self._pattern[self._at] in "bBAZ":
            self._at += 1
            return ""
        if letter == "\\":
            return self._chance.choice(self._escaped())
        if letter in "^$":
            return ""
        return self._chance.choice(_WORD) if letter == "." else letter

    def _quantifier(self) -> tuple[int, int]:
        least, most = 1, 1
        if self._next("*"):
            least, most = 0, _LONGEST_REPEAT
        elif self._next("+"):
            least, most = 1, _LONGEST_REPEAT
        elif self._next("?"):
            least, most = 0, 1
        else:
            counted = re.compile(r"\{(\d*)(,?)(\d*)\}").match(self._pattern, self._at)
            if counted is None:
                return 1, 1
            self._at = counted.end()
            least = int(counted[1] or 0)
            most = int(counted[3]) if counted[3] else least + (_LONGEST_REPEAT if counted[2] else 0)
        self._next("?")
        return least, most

    def _class(self) -> str:
        negated = self._next("^")
        letters = ""
        first = True
        while first or self._pattern[self._at] != "]":
            first = False
            letter = self._take()
            if letter == "\\":
                letters += self._escaped()
                continue
            letters += letter
            if self._pattern[self._at] == "-" and self._pattern[self._at + 1] != "]":
                self._at += 1
                end = self._take()
                end = self._escaped()[-1] if end == "\\" else end
                letters += "".join(map(chr, range(ord(letter) + 1, ord(end) + 1)))
        self._at += 1
        return "".join(each for each in _PRINTABLE if each not in letters) if negated else letters

    def _escaped(self) -> str:
        letter = self._take()
        if letter in "xu":
            digits = self._pattern[self._at : self._at + (2 if letter == "x" else 4)]
            self._at += len(digits)
            return chr(int(digits, 16))
        return _CLASSES.get(letter) or _CONTROLS.get(letter) or letter

    def _take(self) -> str:
        self._at += 1
        return self._pattern[self._at - 1]

    def _next(self, letter: str) -> bool:
        if self._pattern.startswith(letter, self._at):
            self._at += 1
            return True
        return False
