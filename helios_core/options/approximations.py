"""The approximations that a run's settings ask for, put around the forwards of its steps."""

from __future__ import annotations

from dataclasses import replace

from ..sampling.hooks import Hooks, Predict
from ..sampling.settings import SamplingSettings
from .history_reuse import reusing_history
from .step_cache import caching_steps


def with_approximations(hooks: Hooks, settings: SamplingSettings) -> Hooks:
    """The hooks, with `history_reuse` and `step_cache` of the settings; the same hooks where both are off."""
    if settings.history_reuse == "off" and not settings.step_cache:
        return hooks

    def around(predict: Predict) -> Predict:
        if settings.history_reuse != "off":
            predict = reusing_history(predict, settings.history_reuse)
        return caching_steps(predict, settings.step_cache) if settings.step_cache else predict

    return replace(hooks, around_predict=around)
