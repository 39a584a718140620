"""What goes wrong with the scheduler that somebody has, measured on its own configuration; no weights are loaded.

    report = examine("path/to/pipeline", steps=8)
    print(report)

Every check is a function of the `Patient`; a trap that is not there is not mentioned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.doctor import flow, general, loop, vp
from fewstep.doctor.patient import Check, Finding, Patient, admitted

CHECKS: tuple[Check, ...] = (*flow.CHECKS, *vp.CHECKS, *loop.CHECKS, *general.CHECKS)

__all__ = ["CHECKS", "Finding", "Patient", "Report", "examine"]


@dataclass(frozen=True)
class Report:
    """What was found: traps first."""

    scheduler: str
    pipeline: str
    steps: int
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record."""
        return {
            "scheduler": self.scheduler, "pipeline": self.pipeline, "steps": self.steps,
            "findings": [finding.to_dict() for finding in self.findings], "checks": [c.__name__ for c in CHECKS],
        }  # fmt: skip

    def __str__(self) -> str:
        traps = sum(finding.severity == "trap" for finding in self.findings)
        of = f" of {self.pipeline}" if self.pipeline else ""
        lines = [f"{self.scheduler}{of}, {self.steps} steps: {traps} traps, {len(self.findings) - traps} notes"]
        for finding in self.findings:
            mark = "!" if finding.severity == "trap" else "-"
            lines += ["", f"{mark} {finding.check}: {finding.what}.", f"  {finding.cure}."]
        return "\n".join(lines)


def examine(
    place: str | Path | Mapping[str, Any], steps: int = 8, *, mu: float = 1.15, compiling: bool = False
) -> Report:
    """Run every check.

    Args:
        place: a scheduler_config.json, its folder, the folder of a pipeline, or the configuration itself.
        steps: network calls that the user asks for.
        mu: what a pipeline with dynamic shifting computes from the resolution (0.5 for 256 tokens and 1.15 for 4096
            with Flux's configuration).
        compiling: whether to compile the step too, which takes some seconds.

    Raises:
        ArgumentError: nothing readable there, or a scheduler that diffusers does not have.
    """
    patient = admitted(place, steps, mu, compiling)
    found = [finding for check in CHECKS if (finding := check(patient)) is not None]
    found.sort(key=lambda finding: finding.severity != "trap")
    return Report(patient.name, patient.pipeline, steps, tuple(found))
