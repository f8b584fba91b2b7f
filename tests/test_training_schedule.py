"""The learning-rate schedule against the published early stopping, written a second time."""

import numpy as np
import pytest

from cr_ud.schedule import PlateauSchedule


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
        assert schedule.update(0.9).dropped
        assert schedule.update(0.5).is_best == is_best


def test_gains_below_the_least_are_the_best_but_no_progress() -> None:
    schedule = PlateauSchedule(patience=2)
    assert schedule.update(0.9).is_best
    small = schedule.update(0.9005)
    assert small.is_best
    assert schedule.waiting == 1
    assert schedule.update(0.9008).dropped
    assert schedule.update(0.9015).is_best
    assert schedule.waiting == 1


def test_state_restores_the_schedule() -> None:
    accuracies = [0.9, 0.91, 0.91, 0.91, 0.9, 0.9, 0.95]
    whole = rates(PlateauSchedule(patience=2), accuracies)
    first = PlateauSchedule(patience=2)
    seen = rates(first, accuracies[:4])
    seen += rates(PlateauSchedule(**first.state()), accuracies[4:])  # type: ignore[arg-type]
    assert seen == whole
