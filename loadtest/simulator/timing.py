"""How long an engine's step takes: the whole model of time, pure.

vLLM batches continuously: the engine runs one step after another, and a step gives every sequence that is
past its prompt one token. What a step costs is nearly linear: a fixed part (weights are read once), a part
for each sequence that decodes (its KV cache is read), a part for each prompt token that is computed in the
step (prefill is bound by arithmetic). Tokens found in the prefix cache cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeModel:
    """Seconds an engine step takes. The defaults resemble an 8B model on one large GPU."""

    step_seconds: float = 0.010
    step_seconds_per_sequence: float = 0.0001
    prefill_seconds_per_token: float = 0.00008

    def __post_init__(self) -> None:
        if min(self.step_seconds, self.step_seconds_per_sequence, self.prefill_seconds_per_token) < 0:
            raise ValueError(f"times cannot be negative: {self}")

    def step(self, *, decoding: int, prefill_tokens: int) -> float:
        """Seconds of one step in which `decoding` sequences get a token and `prefill_tokens` are computed."""
        return (
            self.step_seconds
            + decoding * self.step_seconds_per_sequence
            + prefill_tokens * self.prefill_seconds_per_token
        )

    def scaled(self, factor: float) -> TimeModel:
        """The same engine, `factor` times as slow."""
        return TimeModel(
            step_seconds=self.step_seconds * factor,
            step_seconds_per_sequence=self.step_seconds_per_sequence * factor,
            prefill_seconds_per_token=self.prefill_seconds_per_token * factor,
        )


FAST = TimeModel(step_seconds=20e-6, step_seconds_per_sequence=1e-6, prefill_seconds_per_token=10e-9)
"""For tests: steps follow each other as fast as the event loop turns."""


def prefill_shares(left: list[int], *, decoding: int, max_batched_tokens: int) -> list[int]:
    """How many prompt tokens of each sequence the next step computes (chunked prefill, first come first
    served).

    Sequences that decode take one token of the step's budget each; what remains goes to the prompts in the
    order they were admitted. At least one prompt token is always computed, so that no prompt waits for ever.
    """
    budget = max(max_batched_tokens - decoding, 1)
    shares = []
    for tokens in left:
        share = min(tokens, budget)
        budget -= share
        shares.append(share)
    return shares
