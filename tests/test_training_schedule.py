"""The learning-rate schedules: the published early stopping, written a second time, and the cosine."""

from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest

from cr_ud.schedule import CosineSchedule, PlateauSchedule
from cr_ud.training_figures import _drops
from cr_ud.training_log import EPOCH, TRAIN, LogRow


def published(accuracies: list[float], patience: int) -> list[tuple[float, bool, bool]]:
    """Learning rate, whether `best` is written, and whether training stops, after each epoch."""
    lr, delta, best, counter = 1e-4, 0.001, None, 0
    history = []
    for accuracy in accuracies:
        saved = stop = False
        if best is not None and accuracy < best + delta:
            counter += 1
            if counter == patience:
                lr /= 10
                if lr < 1e-6:
                    stop = True
                else:
                    best, counter, delta = None, 0, 0.002
        else:
            best, counter, saved = accuracy, 0, True
        history.append((lr, saved, stop))
        if stop:
            break
    return history


@pytest.mark.parametrize("seed", range(10))
def test_published_schedule(seed: int) -> None:
    generator = np.random.default_rng(seed)
    accuracies = (0.9 + 0.004 * generator.random(60)).round(4).tolist()
    expected = published(accuracies, patience=4)
    schedule = PlateauSchedule(patience=4, compat="published")
    for accuracy, (lr, saved, stop) in zip(accuracies, expected, strict=False):
        decision = schedule.update(accuracy)
        assert decision.is_best == saved
        assert decision.stop == stop
        if not stop:
            assert schedule.lr == pytest.approx(lr, rel=1e-12)
    assert expected[-1][2]


def rates(schedule: PlateauSchedule, accuracies: list[float]) -> list[float]:
    seen = []
    for accuracy in accuracies:
        if schedule.update(accuracy).stop:
            break
        seen.append(schedule.lr)
    return seen


@pytest.mark.parametrize("compat", ["none", "published"])
def test_three_learning_rates_in_total(compat) -> None:
    seen = rates(PlateauSchedule(patience=2, compat=compat), [0.9] * 50)
    assert sorted(set(seen), reverse=True) == pytest.approx([1e-4, 1e-5, 1e-6])


def test_best_is_forgotten_after_a_drop_only_as_published() -> None:
    for compat, is_best in (("none", False), ("published", True)):
        schedule = PlateauSchedule(patience=1, compat=compat)  # type: ignore[arg-type]
        schedule.update(0.9)
        schedule.update(0.9)
        assert schedule.drops == 1
        assert schedule.update(0.5).is_best == is_best


def test_gains_below_the_least_are_the_best_but_no_progress() -> None:
    schedule = PlateauSchedule(patience=2)
    assert schedule.update(0.9).is_best
    small = schedule.update(0.9005)
    assert small.is_best
    assert schedule.waiting == 1
    schedule.update(0.9008)
    assert schedule.drops == 1
    assert schedule.update(0.9015).is_best
    assert schedule.waiting == 1


def test_state_restores_the_schedule() -> None:
    accuracies = [0.9, 0.91, 0.91, 0.91, 0.9, 0.9, 0.95]
    whole = rates(PlateauSchedule(patience=2), accuracies)
    first = PlateauSchedule(patience=2)
    seen = rates(first, accuracies[:4])
    seen += rates(PlateauSchedule(**asdict(first)), accuracies[4:])  # type: ignore[arg-type]
    assert seen == whole


def test_steps_do_not_change_the_rate_of_a_plateau() -> None:
    schedule = PlateauSchedule()
    before = asdict(schedule)
    for step in (0, 7, 100000):
        schedule.advance(step)
        assert asdict(schedule) == before


def cosine_rates(steps: int, number: int) -> list[float]:
    schedule, seen = CosineSchedule(highest_lr=0.01, steps=steps), []
    for step in range(number):
        schedule.advance(step)
        seen.append(schedule.lr)
    return seen


def test_cosine_rises_over_a_twentieth_and_falls_to_nothing() -> None:
    seen = cosine_rates(200, 205)
    assert seen[:10] == pytest.approx(np.linspace(0.001, 0.01, 10))
    assert seen[10] == pytest.approx(0.01)
    assert all(after < before for before, after in pairwise(seen[10:201]))
    # halfway down and a third of the way, where the cosine is 0 and 1/2
    assert seen[105] == pytest.approx(0.005)
    assert cosine_rates(63, 63)[23] == pytest.approx(0.0075)
    assert 0.0 < seen[199] < 1e-5
    assert seen[200:] == pytest.approx([0.0] * 5, abs=1e-15)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_very_short_cosines_start_at_the_highest_rate(steps: int) -> None:
    seen = cosine_rates(steps, steps)
    assert seen[0] == 0.01
    assert all(0.0 < rate <= 0.01 for rate in seen)


def test_validations_leave_the_cosine_alone_and_the_last_of_the_best_is_kept() -> None:
    schedule = CosineSchedule(highest_lr=0.01, steps=100)
    schedule.advance(50)
    rate = schedule.lr
    decisions = [schedule.update(accuracy) for accuracy in (0.5, *[0.9] * 30, 0.89)]
    assert [decision.is_best for decision in decisions] == [True] * 31 + [False]
    assert not any(decision.stop for decision in decisions)
    assert (schedule.lr, schedule.best) == (rate, 0.9)
    assert CosineSchedule(**asdict(schedule)) == schedule  # type: ignore[arg-type]


def test_only_divisions_by_ten_are_marked_in_the_curves() -> None:
    schedule = PlateauSchedule(patience=1)
    rows = []
    for epoch in range(1, 4):
        rows.append(LogRow(10 * epoch, epoch, TRAIN, 8, 0.5, schedule.lr))
        schedule.update(0.9)
        rows.append(LogRow(10 * epoch, epoch, EPOCH, 8, 0.5, schedule.lr))
    assert _drops(rows) == [(20, pytest.approx(1e-5)), (30, pytest.approx(1e-6))]
    cosine = [LogRow(step, 0, TRAIN, 8, 0.5, rate) for step, rate in enumerate(cosine_rates(200, 200), start=1)]
    assert _drops(cosine) == []
