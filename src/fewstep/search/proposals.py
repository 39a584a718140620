"""The contract between proposers and the study, under the name by which searches know it; see `fewstep.proposals`."""

from fewstep.proposals import Proposal, Proposer, Trial

__all__ = ["Proposal", "Proposer", "Trial"]
