"""What is said: prompts with shared beginnings, and conversations that grow.

Cost on a pod, and which pod already knows a prompt, hang on two things only: how long it is, and how much of its
beginning was there before. So a text is words in no order, drawn from a seed. Each word has three letters: with its
blank it is four bytes, which is a token to the simulator, and a common word, which is about a token to a real
tokenizer. Two texts begin alike only if one is meant to begin with the other.

- A *family* shares a system prompt. Which family asks is drawn: all alike, or the n-th 1/n as often as the first.
- A *conversation* keeps what was said: a turn's prompt is the turn before, an answer, and something new. The answer is
  ours, not the pod's, as the schedule is made before anything was answered: so a cache can know a turn up to the
  question before, not the answer after it.
"""

import random
from dataclasses import dataclass, field

from loadtest.load.plan import Prompt

BYTES_PER_TOKEN = 4
_TEXT = (
    "the and for are but not you all any can had her was one our out day get has him his how man new now old see two "
    "way who boy did its let put say she too use air ask bad bag bed big bit box bus buy car cat cow cry cup cut dog "
    "dry eat egg end eye far few fly fun gas got hat hit hot ice job key kid law lay leg lie lot low map mix net nor "
    "oil own pay per pop ran raw red row run sad sea set sit six sky sun tax tea ten tie tip top try war wet win"
)
WORDS = tuple(_TEXT.split())
SEA_WORDS = 1 << 16
BEGINNING = 8
"""Words of a text that are drawn one by one, so that no two texts begin alike; what follows is a piece of the sea."""


class Sea:
    """A ring of words. A text of any length is a piece of it, for the price of a copy."""

    def __init__(self, rng: random.Random) -> None:
        self._ring = " ".join(rng.choices(WORDS, k=SEA_WORDS)) + " "

    def text(self, tokens: int, rng: random.Random) -> str:
        """So many words."""
        beginning = " ".join(rng.choices(WORDS, k=min(tokens, BEGINNING)))
        start = rng.randrange(SEA_WORDS) * BYTES_PER_TOKEN
        wanted = (tokens - BEGINNING) * BYTES_PER_TOKEN
        if wanted <= 0:
            return beginning
        rounds = (start + wanted) // len(self._ring) + 1
        ring = self._ring if rounds == 1 else self._ring * rounds
        return f"{beginning} {ring[start : start + wanted - 1]}"


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    text: str
    tokens: int


@dataclass(slots=True)
class Conversation:
    """What was said so far."""

    caller: str
    messages: tuple[Message, ...]
    turns: int = 0
    ready_at: float = 0.0
    """Nobody speaks before: they are thinking."""


@dataclass(slots=True)
class Talk:
    """All that one kind of request says. `speak` is asked for the requests in their order."""

    prompt: Prompt
    callers: tuple[str, ...]
    sea: Sea
    rng: random.Random
    _systems: list[Message] = field(default_factory=list)
    _weights: list[float] = field(default_factory=list)
    _going_on: list[Conversation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._systems = [
            self._message("system", self.prompt.system_tokens.draw(self.rng)) for _ in range(self.prompt.families)
        ]
        zipf = self.prompt.popularity == "zipf"
        self._weights = [1 / place if zipf else 1.0 for place in range(1, self.prompt.families + 1)]

    def speak(self, at: float | None, answer_tokens: int) -> tuple[str, tuple[Message, ...]]:
        """The caller, and all messages of the next prompt; it will get so long an answer."""
        conversation = self._choose(at)
        question = self._message("user", self.prompt.tokens.draw(self.rng))
        prompt = (*conversation.messages, question)
        conversation.turns += 1
        if conversation.turns >= self.prompt.turns:
            self._going_on.remove(conversation)
        else:
            conversation.messages = (*prompt, self._message("assistant", max(answer_tokens, 1)))
            conversation.ready_at = (at or 0.0) + self.prompt.thinking_seconds
        return conversation.caller, prompt

    def _choose(self, at: float | None) -> Conversation:
        """One that is not thinking; a new one, if there are too few, or all are."""
        ready = [each for each in self._going_on if at is None or each.ready_at <= at]
        place = self.rng.randrange(self.prompt.conversations) if self.prompt.turns > 1 else 0
        missing = self.prompt.conversations - len(self._going_on)
        if ready and place >= missing:
            return self.rng.choice(ready)
        system = self.rng.choices(self._systems, self._weights) if self._systems else ()
        begun = Conversation(self.rng.choice(self.callers), tuple(system))
        self._going_on.append(begun)
        return begun

    def _message(self, role: str, tokens: int) -> Message:
        return Message(role, self.sea.text(tokens, self.rng), tokens)
