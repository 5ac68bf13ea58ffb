"""The loop on a stage of one weight: what it promises holds for every stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from torch import Tensor, nn

from napari_jrss._tests.training.phantoms import AfterSteps, Never, cpu, tiny_config
from napari_jrss.networks.weights import CheckpointError
from napari_jrss.training.checkpoint import TrainingState
from napari_jrss.training.events import (
    Cancelled,
    EpochEnd,
    Event,
    StageStarted,
    StepEnd,
    parse_event,
)
from napari_jrss.training.loop import Validation, clearly_worse, fit


class OneWeight:
    """Pulls a weight towards noise; its validation values are given."""

    name = "one_weight"
    learning_rate = 0.5
    judge_start = False
    steps_per_epoch = 3

    def __init__(
        self,
        steps: int = 12,
        validation: list[float | None] | None = None,
        fabric: Fabric | None = None,
        cases: int = 0,
    ) -> None:
        module = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(module.weight)
        adam = torch.optim.Adam(module.parameters(), self.learning_rate)
        self.modules: dict[str, nn.Module] = {"network": module}
        self.network, self.optimizer = (fabric or cpu()).setup(module, adam)
        self.steps = steps
        self.values = validation
        self.cases = cases
        self.seen: list[float] = []
        self.rates: list[float] = []
        self.after: list[int] = []
        self.nan_at: int | None = None

    @property
    def weight(self) -> float:
        return self.modules["network"].get_parameter("weight").item()

    def losses(self, step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        goal = float(rng.normal()) + float(torch.randn(()))
        value = self.network(torch.full((1, 1), float("nan") if step == self.nan_at else 1.0))
        return {"total": (value - goal).square().sum(), "goal": torch.tensor(goal)}

    def after_step(self, step: int) -> None:
        self.after.append(step)

    def validate(self) -> Validation:
        values = self.values or [None]
        value = values[min(len(self.seen), len(values) - 1)]
        for _ in range(self.cases):
            yield
        self.seen.append(self.weight)
        return [] if value is None else [value] * max(self.cases, 1)


def train(stage: OneWeight, path: Path, cancel: AfterSteps | None = None, **changes) -> list[Event]:
    return list(fit(stage, cpu(), path, tiny_config(**changes), cancel or Never()))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state.safetensors"


def test_the_learning_rate_decays_per_epoch(state: Path) -> None:
    stage = OneWeight(steps=7)
    train(stage, state, gamma=0.5)
    assert stage.rates == [0.5] * 3 + [0.25] * 3 + [0.125]
    assert stage.after == list(range(7))


def test_a_cosine_rises_for_a_twentieth_of_the_steps_and_falls_to_a_hundredth(state: Path) -> None:
    stage = OneWeight(steps=40)
    train(stage, state, schedule="cosine", gamma=0.5)
    assert stage.rates[:3] == [0.25, 0.5, 0.5]  # 0.5 is the rate of the stage
    assert stage.rates[2:] == sorted(stage.rates[2:], reverse=True)
    assert stage.rates[21] == pytest.approx(0.005 + 0.495 / 2)  # half way down
    assert stage.rates[-1] == pytest.approx(0.005, rel=0.2)


def test_a_cosine_does_not_depend_on_the_number_of_cases(tmp_path: Path) -> None:
    few, many = OneWeight(steps=12), OneWeight(steps=12)
    many.steps_per_epoch = 12
    for stage in (few, many):
        train(stage, tmp_path / f"{stage.steps_per_epoch}", schedule="cosine")
    assert few.rates == many.rates


def test_after_a_cosine_the_last_weights_stay(state: Path) -> None:
    stage = OneWeight(validation=[0.4, 0.8, 0.6, 0.5])
    last = train(stage, state, schedule="cosine")[-1]
    assert stage.weight == stage.seen[-1] != stage.seen[1]
    assert isinstance(last, EpochEnd)
    assert last.best == 0.5


def test_a_long_gradient_is_shortened(state: Path) -> None:
    stage = OneWeight(steps=1)
    train(stage, state, gradient_clip=1e-3)
    assert stage.network.weight.grad is not None
    assert float(stage.network.weight.grad.norm()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(("at_end", "stays"), [(0.54, True), (0.56, False), (0.7, False)])
def test_what_a_stage_starts_from_stays_if_its_end_is_clearly_worse(
    at_end: float, stays: bool, state: Path
) -> None:
    stage = OneWeight(steps=6, validation=[0.6, 0.9, at_end, 0.6], cases=1)
    stage.judge_start = True
    last = [e for e in train(stage, state) if isinstance(e, EpochEnd)][-1]
    assert stage.weight == (0.0 if stays else stage.seen[2])
    assert last.best == (0.6 if stays else at_end)


@pytest.mark.parametrize(
    ("change", "worse"),
    [
        ([-0.02, -0.05, -0.01, 0.02], False),  # by chance
        ([-0.02, -0.03, -0.02, -0.03], True),
        ([-0.3, 0.1, 0.0], True),  # much
        ([-0.04], False),
        ([-0.02, -0.02], True),
        ([0.0, 0.0], False),
        ([np.nan, -0.01], False),
        ([], False),
    ],
)
def test_a_drop_counts_if_it_is_large_or_not_by_chance(change: list[float], worse: bool) -> None:
    before = np.full(len(change), 0.8)
    assert clearly_worse(before, before + change) is worse


def test_a_stage_left_before_its_first_step_judges_its_start_again(state: Path) -> None:
    stage = OneWeight(steps=6, validation=[0.6, 0.5, 0.3], cases=2)
    stage.judge_start = True
    assert isinstance(train(stage, state, AfterSteps(1))[-1], Cancelled)
    again = OneWeight(steps=6, validation=[0.6, 0.5, 0.3, 0.6], cases=2)
    again.judge_start = True
    train(again, state)
    assert again.weight == 0.0


def test_events_tell_every_step_and_each_epochs_mean(state: Path) -> None:
    events = train(OneWeight(steps=7), state)
    assert isinstance(events[0], StageStarted)
    steps = [e for e in events if isinstance(e, StepEnd)]
    epochs = [e for e in events if isinstance(e, EpochEnd)]
    assert [(e.step, e.steps) for e in steps] == [(i, 7) for i in range(1, 8)]
    assert [(e.epoch, e.step) for e in epochs] == [(1, 3), (2, 6), (2, 7)]
    for epoch, first, last in zip(epochs, (0, 3, 6), (3, 6, 7), strict=True):
        mean = np.mean([e.losses["total"] for e in steps[first:last]])
        assert epoch.losses["total"] == pytest.approx(mean)
    assert [parse_event(e.model_dump_json()) for e in events] == events


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([0.1, 0.2, 0.9, 0.3], 2),  # a later epoch is worse
        ([0.1, 0.2, 0.3, 0.4], 3),  # the last is the best
        ([0.9, 0.2, 0.3, 0.4], 0),  # nothing beats the first epoch
        ([0.1, 0.5, 0.5, 0.5], 1),  # the first of equals
    ],
)
def test_the_best_on_validation_is_what_remains(
    values: list[float | None], best: int, state: Path
) -> None:
    stage = OneWeight(steps=12, validation=values)
    events = train(stage, state)
    assert len(stage.seen) == 4
    assert len(set(stage.seen)) == 4
    assert stage.weight == stage.seen[best]
    last = events[-1]
    assert isinstance(last, EpochEnd)
    assert last.best == values[best]


def test_without_validation_the_last_weights_remain(state: Path) -> None:
    stage = OneWeight()
    train(stage, state)
    assert stage.weight == stage.seen[-1] != 0


def test_validation_comes_at_its_interval_and_at_the_end(state: Path) -> None:
    stage = OneWeight(steps=14, validation=[0.5])
    events = train(stage, state, validation_interval=3)
    told = [(e.step, e.validation) for e in events if isinstance(e, EpochEnd)]
    assert told == [(3, None), (6, None), (9, 0.5), (12, None), (14, 0.5)]


@pytest.mark.parametrize("look", [0, 1, 4, 6, 11])
def test_cancelled_before_the_next_step_and_resumed_as_if_nothing_were(
    look: int, tmp_path: Path
) -> None:
    values: list[float | None] = [0.3, 0.2, 0.4, 0.2]
    straight, first = (OneWeight(validation=list(values)) for _ in range(2))
    whole = train(straight, tmp_path / "straight")
    events = train(first, tmp_path / "cancelled", AfterSteps(look))
    assert events[-1] == Cancelled(stage="one_weight", step=look)
    assert sum(isinstance(e, StepEnd) for e in events) == look

    done = look // 3
    second = OneWeight(validation=values[done:])
    rest = train(second, tmp_path / "cancelled")
    assert isinstance(rest[0], StageStarted)
    assert rest[0].first_step == look
    assert rest[0].best == max((v for v in values[:done] if v is not None), default=None)
    assert second.weight == straight.weight

    def epochs(events: list[Event]) -> list[Event]:
        return [event for event in events if isinstance(event, EpochEnd)]

    assert epochs(events) + epochs(rest) == epochs(whole)
    losses = [e.losses for e in (*events, *rest) if isinstance(e, StepEnd)]
    assert losses == [e.losses for e in whole if isinstance(e, StepEnd)]
    ends = [TrainingState.read(tmp_path / name) for name in ("straight", "cancelled")]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("look", [3, 4, 9, 18, 19])
def test_left_between_the_cases_of_a_validation_which_is_then_made_anew(
    look: int, tmp_path: Path
) -> None:
    values: list[float | None] = [0.3, 0.2, 0.4, 0.2]
    straight, first = (OneWeight(validation=list(values), cases=2) for _ in range(2))
    whole = train(straight, tmp_path / "straight")
    events = train(first, tmp_path / "left", AfterSteps(look))
    done = look // 5  # epochs: three looks before steps, two between cases
    assert events[-1] == Cancelled(stage="one_weight", step=3 * (done + 1))
    assert len(first.seen) == done
    second = OneWeight(validation=values[done:], cases=2)
    rest = train(second, tmp_path / "left")
    assert rest[1].kind == "epoch_end"
    assert second.weight == straight.weight
    kinds = StepEnd | EpochEnd

    def told(events: list[Event]) -> list[Event]:
        return [e.model_copy(update={"seconds": 0}) for e in events if isinstance(e, kinds)]

    assert told(events + rest) == told(whole)
    ends = [TrainingState.read(tmp_path / name) for name in ("straight", "left")]
    assert ends[0] == ends[1]


def test_a_resumed_run_scales_its_losses_as_it_did(state: Path) -> None:
    def half() -> Fabric:
        scaler = torch.amp.GradScaler("cpu", init_scale=8, growth_interval=3)
        return Fabric(accelerator="cpu", plugins=[MixedPrecision("16-mixed", "cpu", scaler)])

    def run(steps: int) -> dict[str, float]:
        fabric = half()
        cancel = AfterSteps(steps)
        list(fit(OneWeight(fabric=fabric), fabric, state, tiny_config(), cancel))
        return fabric.strategy.precision.state_dict()

    assert run(4)["scale"] == 16  # grown after the third step, remembered
    after = run(1)
    assert (after["scale"], after["_growth_tracker"]) == (16, 2)


def test_a_seed_decides_everything_and_another_seed_something_else(tmp_path: Path) -> None:
    stages = [OneWeight() for _ in range(3)]
    for i, (stage, seed) in enumerate(zip(stages, (1, 1, 2), strict=True)):
        train(stage, tmp_path / str(i), seed=seed)
    assert stages[0].weight == stages[1].weight != stages[2].weight


def test_randomness_outside_is_left_alone_and_has_no_say(tmp_path: Path) -> None:
    weights = []
    for seed in (1, 2):
        stage = OneWeight()
        torch.manual_seed(seed)
        expected = torch.Generator().manual_seed(seed)
        train(stage, tmp_path / str(seed))
        assert torch.rand(()) == torch.rand((), generator=expected)
        weights.append(stage.weight)
    assert weights[0] == weights[1]


@pytest.mark.parametrize("clip", [0.0, 5.0])
def test_a_loss_that_is_no_number_says_what_to_do_and_keeps_the_last_good_state(
    clip: float, state: Path
) -> None:
    stage = OneWeight()
    stage.nan_at = 4
    message = "loss of one_weight became nan at step 5; lower the learning rate"
    with pytest.raises(FloatingPointError, match=message):
        train(stage, state, gradient_clip=clip)
    kept = TrainingState.read(state)
    assert kept.step == 3
    assert all(t.isfinite().all() for t in kept.modules["network"].values())


def test_a_state_of_something_else_is_refused_by_name(state: Path) -> None:
    TrainingState({"other": {"weight": torch.zeros(1, 1)}}, step=2).write(state)
    with pytest.raises(CheckpointError, match=r"state\.safetensors"):
        train(OneWeight(), state)
