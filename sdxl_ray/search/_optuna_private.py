"""Every use of Optuna's private API. pyproject.toml caps Optuna at the next minor version.

`tests/search/test_optuna_private.py` fails when a name that is used here has changed: check it, then raise the cap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.samplers import NSGAIISampler


def generation_key(sampler: NSGAIISampler) -> str:
    """The system attribute of a trial in which a sampler keeps the trial's generation.

    Private: the public `get_trial_generation` writes the attribute of a trial that runs; one that has ended is added to
    a study with its attributes and cannot be changed after that.
    """
    key: str = sampler._get_generation_key()
    return key
