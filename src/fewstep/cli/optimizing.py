"""`fewstep optimize`: find better times for a network, and write the schedule, a picture and a report."""

from __future__ import annotations

from fewstep.cli.common import Commands

COMMANDS: Commands = ()
