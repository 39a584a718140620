"""S³: solver schedules searched, every strategy at every step (Liu et al., ICLR 2024).

`proposer(name, noise=, nfes=, seed=)` gives a search strategy; `Space` is what it may choose from, `Rates` how it
changes schedules, `Guidance` how its surrogate is used. A study runs it.
"""

from fewstep.search.s3.guided import Guidance
from fewstep.search.s3.proposers import NAMES, proposer
from fewstep.search.s3.rates import PRESETS, Rates
from fewstep.search.s3.space import Space

__all__ = ["NAMES", "PRESETS", "Guidance", "Rates", "Space", "proposer"]
