"""fewstep in diffusers: the scheduler, what it can be put into, and a copy of it for the Hub.

    import fewstep.diffusers                          # before from_pretrained of a pipeline that was saved with it
    pipe.scheduler = fewstep.diffusers.FewStepScheduler.from_config(pipe.scheduler.config, tableau="schedule.json")
    images = pipe(prompt, num_inference_steps=6).images

Importing this module loads diffusers.
"""

from __future__ import annotations

from diffusers.schedulers.scheduling_utils import SchedulerMixin

from fewstep.adapters.hub.fewstep_scheduler import FewStepScheduler

# What `save_pretrained` writes into model_index.json is the module's name, which must stay. diffusers also looks
# SchedulerMixin up in it.
FewStepScheduler.__module__ = __name__

__all__ = ["FewStepScheduler", "SchedulerMixin"]
