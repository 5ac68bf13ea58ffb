"""The training loop: one stage, step by step, resumable at any moment.

All randomness of a step comes from (seed, stage, step), so a run that goes on from a
training state repeats exactly what the straight run would have done.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from napari_jrss.config import TrainingConfig
from napari_jrss.networks.weights import CheckpointError, StateDict, load_into
from napari_jrss.training.checkpoint import TrainingState, optimizer_moments, restore_moments
from napari_jrss.training.events import Cancelled, EpochEnd, Event, StageStarted, StepEnd
from napari_jrss.training.sampling import step_seed

WARM_UP, LAST_RATE = 0.05, 0.01
"""Of the cosine schedule: share of the steps in which the rate rises, and its last factor."""


class Cancel(Protocol):
    """Something that can be asked to stop, such as a :class:`threading.Event`."""

    def is_set(self) -> bool:
        """Whether the work should stop."""
        ...


Validation = Generator[None, None, list[float]]
"""Measures case by case, and returns the mean foreground Dice of each."""

CHANCE, DROP = 0.05, 0.05
"""When a result is called worse: the chance of such a drop among equals, or a mean drop in Dice."""


class Stage(Protocol):
    """What a stage brings to :func:`fit`.

    `modules` are saved and restored together: the trained network and, where there is one,
    its teacher. `validate` decides the best epoch; with `judge_start`, the last epoch stays unless
    it is :func:`clearly_worse` than what the stage started from.
    """

    name: str
    network: nn.Module
    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    learning_rate: float
    steps: int
    steps_per_epoch: int
    judge_start: bool

    def losses(self, step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Losses of a step by name; the one named ``total`` is minimised."""
        ...

    def after_step(self, step: int) -> None:
        """Called after each step of the optimizer."""
        ...

    def validate(self) -> Validation:
        """Measure the validation cases."""
        ...


def fit(
    stage: Stage, fabric: Fabric, state_path: Path, config: TrainingConfig, cancel: Cancel
) -> Iterator[Event]:
    """Train one stage to its end, leaving the best weights on validation in its modules.

    With the cosine schedule it leaves the last ones.

    Parameters
    ----------
    stage
        What to train; its modules and optimiser are already set up by `fabric`.
    fabric
        Device, precision and the other processes.
    state_path
        Where the training state is kept; it is resumed from if it is there.
    config
        Seed, decay of the learning rate, and how often to validate.
    cancel
        Checked before each step and between the cases of a validation; the state is saved and
        :class:`Cancelled` yielded.
    """
    state = _restore(stage, fabric, state_path)
    yield StageStarted(
        stage=stage.name,
        steps=stage.steps,
        first_step=state.step,
        best=state.best_validation,
    )
    if stage.judge_start and state.step == 0:
        ended, value, _ = run_validation(stage.validate(), fabric, cancel)
        if not ended:
            yield _leave(stage, fabric, state, state_path)
            return
        _keep_best(stage, state, value, config)
    while True:
        if state.epoch_losses and _ends_epoch(state.step, stage):
            done = state.step // stage.steps_per_epoch
            due = done % config.validation_interval == 0 or state.step == stage.steps
            value = None
            if due:
                ended, value, cases = run_validation(stage.validate(), fabric, cancel)
                if ended and stage.judge_start and state.step == stage.steps:
                    ended = _judge(stage, state, value, cases, fabric, cancel)
                if not ended:
                    yield _leave(stage, fabric, state, state_path)
                    return
                if not stage.judge_start:
                    _keep_best(stage, state, value, config)
            yield EpochEnd(
                stage=stage.name,
                epoch=done,
                step=state.step,
                losses=_means(state.epoch_losses),
                validation=value,
                best=state.best_validation,
            )
            state.epoch_losses = []
            if due:
                _save(stage, fabric, state, state_path)
        if state.step >= stage.steps:
            break
        if stop_requested(cancel, fabric):
            yield _leave(stage, fabric, state, state_path)
            return
        taken = _step(stage, fabric, state, config)
        yield taken
        state.epoch_losses.append(taken.losses)
    if state.best:
        _put(stage, state.best)


def _step(stage: Stage, fabric: Fabric, state: TrainingState, config: TrainingConfig) -> StepEnd:
    """Take one step of the optimiser."""
    started = time.perf_counter()
    rate = stage.learning_rate * rate_factor(state.step, stage, config)
    for group in stage.optimizer.param_groups:
        # a stage of two networks may give one of them a multiple of its rate
        group["lr"] = rate * group.get("factor", 1.0)
    with _randomness_of(config.seed, stage.name, state.step) as rng:
        losses = stage.losses(state.step, rng)
        stage.optimizer.zero_grad()
        fabric.backward(losses["total"])
        if config.gradient_clip > 0:
            fabric.clip_gradients(
                stage.network,
                stage.optimizer,
                max_norm=config.gradient_clip,
                error_if_nonfinite=False,  # told below, of the loss
            )
        stage.optimizer.step()
    stage.after_step(state.step)
    state.step += 1
    values = {name: float(loss.detach()) for name, loss in losses.items()}
    if not np.isfinite(values["total"]):
        raise FloatingPointError(
            f"the loss of {stage.name} became {values['total']} at step {state.step}; "
            "lower the learning rate or train in 32-bit precision"
        )
    return StepEnd(
        stage=stage.name,
        step=state.step,
        steps=stage.steps,
        losses=values,
        seconds=time.perf_counter() - started,
    )


def rate_factor(step: int, stage: Stage, config: TrainingConfig) -> float:
    """Factor on the learning rate at a step (counted from 0)."""
    if config.schedule == "decay":
        return float(config.gamma ** (step // stage.steps_per_epoch))
    warm = max(1, round(WARM_UP * stage.steps))
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(1, stage.steps - warm)
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


def stop_requested(cancel: Cancel, fabric: Fabric) -> bool:
    """Whether to stop, as the first process says: all must stop before the same step."""
    return bool(fabric.broadcast(cancel.is_set()))


def run_validation(
    validation: Validation, fabric: Fabric, cancel: Cancel
) -> tuple[bool, float | None, list[float]]:
    """Validate, unless asked to stop between two cases.

    Returns
    -------
    bool, float or None, list of float
        Whether the validation ended, its Dice, and that of each case.
    """
    while True:
        try:
            next(validation)
        except StopIteration as end:
            cases: list[float] = end.value
            return True, float(np.nanmean(cases)) if cases else None, cases
        if stop_requested(cancel, fabric):
            return False, None, []


def clearly_worse(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether Dice fell on the same cases by more than a few cases can differ by chance.

    A few validation cases often say the opposite of many (docs/dev/choices.md), so a small drop
    doesn't count. One of more than 0.05 does, and a smaller one if a one-sided paired t-test gives
    it a chance below 5 %.
    """
    from scipy.stats import ttest_rel

    change = np.subtract(after, before)
    change = change[np.isfinite(change)]
    if len(change) == 0 or change.mean() >= 0:
        return False
    if change.mean() < -DROP:
        return True
    if len(change) == 1:
        return False
    return bool(
        np.ptp(change) == 0 or ttest_rel(change, 0 * change, alternative="less").pvalue < CHANCE
    )


def _ends_epoch(step: int, stage: Stage) -> bool:
    return step % stage.steps_per_epoch == 0 or step == stage.steps


@contextmanager
def _randomness_of(seed: int, stage: str, step: int) -> Iterator[np.random.Generator]:
    """Seed numpy's draws and torch's (dropout, augmentation) for one step, in all processes."""
    number = step_seed(seed, stage, step)
    with torch.random.fork_rng():
        torch.manual_seed(number)
        yield np.random.default_rng(number)


def _means(losses: list[dict[str, float]]) -> dict[str, float]:
    names = {name for values in losses for name in values}
    return {
        name: float(np.mean([values[name] for values in losses if name in values]))
        for name in sorted(names)
    }


def _judge(
    stage: Stage,
    state: TrainingState,
    value: float | None,
    cases: Sequence[float],
    fabric: Fabric,
    cancel: Cancel,
) -> bool:
    """Keep the stage's end, unless it is clearly worse than its start; False if stopped."""
    if not state.best:
        return True
    last = _copies(stage)
    _put(stage, state.best)
    ended, _, before = run_validation(stage.validate(), fabric, cancel)
    _put(stage, last)
    if ended and not clearly_worse(before, cases):
        state.best, state.best_validation = last, value
    return ended


def _keep_best(
    stage: Stage, state: TrainingState, value: float | None, config: TrainingConfig
) -> None:
    """Keep the best weights on validation; where the rate ends near 0, the last ones stay.

    The best of many validations on a few cases is a matter of luck, and what is judged against it
    later seems worse than it is (docs/dev/choices.md).
    """
    if config.schedule == "cosine" and not stage.judge_start:
        state.best_validation = value
    elif value is not None and (state.best_validation is None or value > state.best_validation):
        state.best_validation = value
        state.best = _copies(stage)


def _copies(stage: Stage) -> dict[str, StateDict]:
    return {
        name: {key: value.detach().clone() for key, value in module.state_dict().items()}
        for name, module in stage.modules.items()
    }


def _put(stage: Stage, states: dict[str, StateDict]) -> None:
    for name, module in stage.modules.items():
        module.load_state_dict(states[name])


def _leave(stage: Stage, fabric: Fabric, state: TrainingState, path: Path) -> Cancelled:
    _save(stage, fabric, state, path)
    return Cancelled(stage=stage.name, step=state.step)


def _save(stage: Stage, fabric: Fabric, state: TrainingState, path: Path) -> None:
    if not fabric.is_global_zero:
        return
    state.modules = {name: module.state_dict() for name, module in stage.modules.items()}
    state.optimizer = optimizer_moments(stage.optimizer)
    state.precision = fabric.strategy.precision.state_dict()
    state.write(path)


def _restore(stage: Stage, fabric: Fabric, path: Path) -> TrainingState:
    if not path.exists():
        return TrainingState(modules={})
    state = TrainingState.read(path)
    for name, module in stage.modules.items():
        load_into(module, state.modules.get(name, {}), path)
        held = state.best.get(name, {}) if state.best else module.state_dict()
        if {k: v.shape for k, v in held.items()} != {
            k: v.shape for k, v in module.state_dict().items()
        }:
            raise CheckpointError(f"{path}: a training state of another network")
    restore_moments(stage.optimizer, state.optimizer, path)
    try:
        fabric.strategy.precision.load_state_dict(state.precision)
    except (KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path}: a training state of another precision ({error})") from error
    return state
