"""What an engine sees of a prompt: its length in tokens, the names of its full blocks, and a key for the
answer.

There is no tokenizer: four bytes of UTF-8 are a token, so counts are near those of an English BPE and the
same everywhere. A chat is rendered with ChatML marks first, which cost a few tokens a message and make the
next turn's prompt begin with this turn's prompt and answer, byte for byte, as prefix caching wants it.
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec
import orjson

BYTES_PER_TOKEN = 4
END_OF_TURN = b"<|im_end|>\n"


class Prompt(msgspec.Struct, frozen=True):
    """`chain` names the full blocks, the first after `root`; `tail` is the text behind them; answers are
    drawn from `key`. `text` is all of it, kept only if someone wants to see it again."""

    tokens: int
    root: int
    chain: tuple[int, ...]
    tail: bytes
    key: bytes
    text: bytes = b""

    @property
    def token_ids(self) -> list[int]:
        """Those that `render_token_ids` makes the kept text of."""
        return [int.from_bytes(piece, "little") for piece in self._pieces]

    @property
    def token_texts(self) -> list[str]:
        return [piece.rstrip(b"\0").decode("utf-8", "replace") for piece in self._pieces]

    @property
    def _pieces(self) -> list[bytes]:
        return [self.text[at : at + BYTES_PER_TOKEN] for at in range(0, len(self.text), BYTES_PER_TOKEN)]


def render_chat(messages: list[tuple[str, str]], tools: bytes = b"") -> bytes:
    """(role, content) pairs as one text, ready for the assistant's answer."""
    parts = [b"<|im_start|>tools\n%b%b" % (tools, END_OF_TURN)] if tools else []
    for role, content in messages:
        parts.append(f"<|im_start|>{role}\n{content}<|im_end|>\n".encode("utf-8", "surrogatepass"))
    parts.append(b"<|im_start|>assistant\n")
    return b"".join(parts)


def render_token_ids(token_ids: list[int]) -> bytes:
    """Token ids as text of the same length in tokens."""
    return b"".join([(token_id & 0xFFFFFFFF).to_bytes(BYTES_PER_TOKEN, "little") for token_id in token_ids])


def read_prompt(text: bytes, *, block_size_tokens: int, salt: object, keep_text: bool = False) -> Prompt:
    """`salt` isolates: the same text under another salt shares no block (vLLM's `cache_salt`)."""
    width = block_size_tokens * BYTES_PER_TOKEN
    full = len(text) // width * width
    root = hash(salt)
    return Prompt(
        tokens=max(-(-len(text) // BYTES_PER_TOKEN), 1),
        root=root,
        chain=tuple(extend_chain(root, text[:full], width)),
        tail=text[full:],
        key=blake2b(text, digest_size=16).digest(),
        text=text if keep_text else b"",
    )


def extend_chain(parent: int, text: bytes, width: int) -> list[int]:
    """Names of the full blocks of `text` that follow the block `parent`.

    Python's own hash is enough: names are compared within one process only.
    """
    names = []
    name = parent
    for start in range(0, len(text) - width + 1, width):
        name = hash((name, text[start : start + width]))
        names.append(name)
    return names


def answered_chain(prompt: Prompt, pieces: list[bytes], *, block_size_tokens: int) -> list[int]:
    """Names of the full blocks that an answer adds behind the prompt's own. `pieces` are insides of JSON strings."""
    width = block_size_tokens * BYTES_PER_TOKEN
    escaped = b"".join(pieces)
    # Escapes only lengthen: a short answer fills no block, and needs no second look.
    if len(prompt.tail) + len(escaped) + len(END_OF_TURN) < width:
        return []
    answer: str = orjson.loads(b'"%b"' % escaped)
    parent = prompt.chain[-1] if prompt.chain else prompt.root
    return extend_chain(parent, prompt.tail + answer.encode() + END_OF_TURN, width)
