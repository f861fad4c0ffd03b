"""What a pod is like: how long a step of its engine takes, and what fits into it.

vLLM's engine runs one step after another. A step gives each sequence that decodes one token, and computes prompt tokens
within a budget. What it costs is nearly linear: a fixed part (the weights are read), a part for each sequence that
decodes (its KV cache is read), one for each prompt token computed, and one for each pair of such a token with a token
before it (attention). `calibrate` measures the four at a real vLLM.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds: of a step; and more for each sequence that decodes, prompt token computed, pair of attention."""

    step: float
    per_sequence: float
    per_token: float
    per_pair: float

    def seconds(self, decoding: int, tokens: int, token_pairs: float) -> float:
        """Of one step."""
        return self.step + self.per_sequence * decoding + self.per_token * tokens + self.per_pair * token_pairs

    def times(self, factor: float) -> "StepTime":
        """The same engine, that many times as slow."""
        return StepTime(
            step=self.step * factor,
            per_sequence=self.per_sequence * factor,
            per_token=self.per_token * factor,
            per_pair=self.per_pair * factor,
        )


def pairs(before: int, tokens: int) -> float:
    """Pairs of attention when `tokens` are computed after `before` others."""
    return tokens * (before + tokens / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One kind of pod, and the lengths of prompts that suit it. The limits are vLLM's flags of the same names."""

    name: str
    time: StepTime
    max_num_batched_tokens: int
    max_num_seqs: int
    kv_tokens: int
    """How many tokens its KV cache holds."""
    prompt_scale: float = 1.0
    """All lengths of a workload are multiplied by this."""
    max_prompt_tokens: int = 32_000
    max_answer_tokens: int = 2_000


LARGE = Profile(
    # An 8B model on one large GPU. Its form is the measured one; its scale is assumed: step, sequence and token as the
    # load tests' simulator has them (12,500 prompt tokens a second, 10 ms a step), attention by arithmetic:
    # 4 × 32 layers × 4,096 floating-point operations a pair beside 2 × 8e9 a token are 3.3e-5 of a token's cost.
    name="large",
    time=StepTime(step=0.010, per_sequence=0.0001, per_token=0.00008, per_pair=2.6e-9),
    max_num_batched_tokens=8192,
    max_num_seqs=256,
    kv_tokens=262_144,
)

MEASURED = Profile(
    # vLLM 0.32.0 on CPU: SmolLM2-135M in float32 on one thread of a 2-core AMD EPYC, --enforce-eager,
    # --max-num-batched-tokens 2048, --block-size 32; 2026-11-25, by `calibrate`, 5 prompts of each length, in ms:
    #   first token, 64 / 128 / 256 / 512 / 1,024 / 1,800 prompt tokens   measured  90 156 294 728 1,570 3,048
    #                                                                     fitted    89 160 312 656 1,502 3,186
    #   between tokens, 1 / 2 / 4 / 8 streams                             measured  23 24 27 35
    #                                                                     fitted    23 24 28 34
    # Not fitted, predicted: 32 tokens after 224 / 480 / 992 cached ones   measured  59 63 69
    #                                                                     predicted 60 67 80
    #   the gap in 1 / 4 streams when 1,024 tokens come (another run)     measured  1,346 1,309
    #                                                                     predicted 1,444 1,446
    # Of three runs on this machine, which others used too, this is the quietest; the others' c was 0.8 and 0.9 ms. A
    # single reading of 8 tokens after 1,792 cached ones took 182 ms for 41 (55 for 60 in the other run).
    name="measured",
    time=StepTime(step=0.0210, per_sequence=0.00164, per_token=0.00103, per_pair=8.06e-7),
    max_num_batched_tokens=2048,
    # Flags one may choose: that server had 16 sequences and a KV cache of 0.5 GiB, 11,648 tokens.
    max_num_seqs=64,
    kv_tokens=93_184,
    # The model takes 2,048 tokens.
    prompt_scale=0.25,
    max_prompt_tokens=1800,
    max_answer_tokens=240,
)
