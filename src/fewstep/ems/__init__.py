"""DPM-Solver-v3's empirical model statistics (EMS): what they are, how they are computed, and a file for them."""

from __future__ import annotations

from fewstep.ems.statistics import EMS, log_snr_grid

__all__ = ["EMS", "log_snr_grid"]
