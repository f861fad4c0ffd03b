"""How long prompts and answers are: fixed, even, log-normal, or as a published trace has them.

Each profile is a pair of log-normal distributions: for prompts, and for answers. Of the 2023 trace of Azure
(github.com/Azure/AzurePublicDataset, CC-BY; described in Patel et al., "Splitwise", arXiv:2311.18677), of the trace
`conversation` of Mooncake (github.com/kvcache-ai/Mooncake, FAST'25 release) and of BurstGPT (Wang et al.,
arXiv:2401.17644, CC-BY), some rows were read, spread over one or two pieces of the file. The median is the exponential
of the mean of their logarithms, sigma the deviation of these (the fit of maximum likelihood), and nothing is longer
than the longest row that was read. `mooncake-2024` is fitted to statistics that were published (the page
"benchmarks" of github.com/ai-dynamo/dynamo): the median is the trace's, sigma = sqrt(2 ln(mean / median)), the longest
is the trace's. No row of a trace is kept here.

| profile | rows read | mean of the rows | mean of the profile | known of the whole trace |
|---|---|---|---|---|
| azure-conversation | 213 of 19,366 | 1,043 and 181 | 1,009 and 176 | medians 1,020 and 129 |
| azure-code | 147 of 8,818 | 2,261 and 26 | 2,175 and 22 | medians 1,500 and 13 |
| mooncake-conversation | 67 of 12,031 | 11,498 and 332 | 12,120 and 359 | mean prompt 12,035 |
| mooncake-2024 | none | | 8,590 and 140 | means 8,590 and 182, medians 6,345 and 30 |
| burstgpt | the first 38 | 755 and 354 | 664 and 387 | |

What one log-normal cannot say: Azure's chat prompts come in clumps near 400, 1,050 and 4,080 tokens, so with the right
mean the profile's median is below the trace's. Answers of Mooncake are either a few tokens or some hundreds. And the
two lengths are drawn apart, where real ones go together a little. For a load that asks who waits for whom, the mean and
the tail count. Of BurstGPT only the first rows were read, too few for more than the order of size.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol


class Lengths(Protocol):
    """Numbers of tokens, at least 1."""

    def draw(self, rng: random.Random) -> int: ...


@dataclass(frozen=True, slots=True)
class Fixed:
    tokens: int

    def draw(self, rng: random.Random) -> int:
        return self.tokens


@dataclass(frozen=True, slots=True)
class Even:
    """All between the two alike, both included."""

    least: int
    most: int

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.least, self.most)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """exp(N(ln median, sigma)); what falls outside `at_least` and `at_most` is set to them."""

    median: float
    sigma: float
    at_least: int = 1
    at_most: int | None = None

    def draw(self, rng: random.Random) -> int:
        drawn = max(round(self.median * math.exp(rng.gauss(0.0, self.sigma))), self.at_least)
        return drawn if self.at_most is None else min(drawn, self.at_most)

    def scaled(self, factor: float) -> "LogNormal":
        """The same shape, all `factor` times as long."""
        at_most = None if self.at_most is None else max(round(self.at_most * factor), self.at_least)
        return replace(self, median=self.median * factor, at_most=at_most)


@dataclass(frozen=True, slots=True)
class Profile:
    """What one service is asked and answers."""

    prompt: LogNormal
    answer: LogNormal


PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        "azure-conversation": Profile(
            prompt=LogNormal(median=622, sigma=1.07, at_most=4509),
            answer=LogNormal(median=129, sigma=0.85, at_most=649),
        ),
        "azure-code": Profile(
            prompt=LogNormal(median=1294, sigma=1.24, at_most=7437),
            answer=LogNormal(median=16, sigma=0.77, at_most=592),
        ),
        "mooncake-conversation": Profile(
            prompt=LogNormal(median=7383, sigma=1.05, at_most=67841),
            answer=LogNormal(median=182, sigma=1.46, at_most=1342),
        ),
        "mooncake-2024": Profile(
            prompt=LogNormal(median=6345, sigma=0.78, at_most=125546),
            answer=LogNormal(median=30, sigma=1.90, at_most=2000),
        ),
        "burstgpt": Profile(
            prompt=LogNormal(median=394, sigma=1.49, at_most=1840),
            answer=LogNormal(median=270, sigma=0.90, at_most=1656),
        ),
    }
)
