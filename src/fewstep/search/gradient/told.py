"""Model times apart from the times of the states: the network is asked at tau, and its answer is read at t.

LD3 and GS let an epsilon network answer at `tau = t + xi` and go on with alpha and sigma of t. In terms of x0 that is

    D_t = (1 - sigma_t / sigma_tau) / alpha_t x + (sigma_t alpha_tau) / (sigma_tau alpha_t) D_tau,

an entry of A beside the one of B.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewstep.search.gradient.numbers import Axis, Numbers


class Offsets(nn.Module):
    """Offsets of the model times, one for each network call, in the coordinate of the axis; they begin at 0.

    Args:
        axis: the coordinate; model times stay inside the network's range.
        numbers: of the start.
        bounded: LD3's: clamped to half the smallest step, none at the first call. Else GS's: unbounded, at every call.

    A call at alpha = 0 has no offset: an epsilon there says nothing about x0.
    """

    def __init__(self, axis: Axis, numbers: Numbers, *, bounded: bool) -> None:
        super().__init__()
        self.axis, self.bounded = axis, bounded
        self.rows = [i for i in numbers.calls if numbers.alpha[i] > 0 and (i > 0 or not bounded)]
        self.xi = nn.Parameter(torch.zeros(len(self.rows), dtype=torch.float64, device="cpu"))

    def forward(self, n: Numbers) -> Numbers:
        """The numbers with the model times moved."""
        if not self.rows:
            return n
        rows = torch.tensor(self.rows, device="cpu")
        told = self.axis.inside(self.axis.time(self.axis.place(n.times[rows]) + self._bounded(n)))
        alpha, sigma = n.alpha[rows], n.sigma[rows]
        ratio = sigma / self.axis.noise.sigma(told)
        keep = torch.zeros(len(n.times), dtype=torch.float64, device="cpu").index_put((rows,), (1 - ratio) / alpha)
        gain = torch.ones(len(n.times), dtype=torch.float64, device="cpu")
        gain = gain.index_put((rows,), ratio * self.axis.noise.alpha(told) / alpha)
        return n._replace(A=n.A + n.B * keep, B=n.B * gain, told=n.told.index_put((rows,), told))

    def _bounded(self, n: Numbers) -> Tensor:
        if not self.bounded:
            return self.xi
        # Half the smallest step of the times as they are. The authors' lambda mode takes it of the raw parameters,
        # which begin equal, so that nothing can move there at first.
        places = self.axis.place(n.times[torch.tensor(n.calls, device="cpu")])
        gaps = places.diff()
        most = 0.5 * gaps[torch.isfinite(gaps)].min() if bool(torch.isfinite(gaps).any()) else places.new_zeros(())
        return torch.minimum(torch.maximum(self.xi, -most), most)
