"""How many network calls fit into the minutes that a search is given."""

from __future__ import annotations

import torch

from fewstep.search.cache import digest
from fewstep.search.clock import TIME_SHARE
from fewstep.search.ledger import Ledger, speed
from fewstep.setting import Setting


def affordable(ground: Setting, ledger: Ledger, minutes: float, max_calls: int | None) -> tuple[int, str]:
    """Calls that fit into the time, less those that measuring the speed took, and a remark.

    The number is kept beside what it will pay for: a search that goes on, or is repeated, divides the same budget.
    """
    model = ground.model
    name = "budget-" + digest(model.fingerprint, minutes, max_calls, ground.batch, model.batch_cost)
    stored = ground.cache.read(name)
    if stored is not None:
        rate, calls = stored[0]["rate"].item(), int(stored[0]["calls"].item())
    else:
        with ledger.stage("speed", 3 * ground.batch * model.batch_cost):
            rate = speed(model, ground.asked(range(ground.batch)), ground.batch)
        calls = int(rate * 60 * minutes * TIME_SHARE)
        calls = min(calls, max_calls or calls) - ledger.calls
        values = {"rate": torch.tensor(rate, dtype=torch.float64), "calls": torch.tensor(calls)}
        ground.cache.write(name, values, {})
    return calls, f"The budget was set by {minutes:g} minutes at {rate:.0f} network calls a second on this machine."
