"""What a network's output means and what goes into it: probabilities, start relevance, transforms."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import interpolate
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.functional import normalize

from detectors.heads import Classes, Head, LogitMap, OneLogit
from detectors.transforms import IMAGENET_MEAN, IMAGENET_STD, InputTransform, NearestResidual, Normalise

LABELS = torch.tensor([1, 0, 1, 0, 1])
HEADS: dict[str, Head] = {
    "one": OneLogit(),
    "one, positive for real": OneLogit(sign=-1),
    "map": LogitMap(),
    "map of probabilities": LogitMap(mean_of="probabilities"),
    "map, positive for real": LogitMap(sign=-1, mean_of="probabilities"),
}


def output_of(head: Head) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (5, 1, 4, 3) if isinstance(head, LogitMap) else (5, 1)
    return 2 * torch.randn(shape, generator=generator)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_probability_is_the_sigmoid_of_the_logit(head: Head) -> None:
    output = output_of(head)
    p = head.probability(output)
    assert p.dtype == torch.float64
    torch.testing.assert_close(p, torch.sigmoid(head.logit(output.double())))
    torch.testing.assert_close(head.probability(output, single_precision=True), p, rtol=1e-6, atol=0)
    assert torch.equal(head.decision(output), (p > 0.5).long())


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_start_relevance_is_evidence_for_the_class(head: Head) -> None:
    output = output_of(head)
    start = head.start_relevance(output, LABELS)
    assert start.shape == output.shape
    totals = start.flatten(1).sum(1)
    torch.testing.assert_close(totals.abs(), torch.ones(5))
    if not isinstance(head, LogitMap) or head.mean_of == "logits":
        assert torch.equal(totals.sign(), head.score(output, LABELS).sign())
    published = head.start_relevance(output, LABELS, published=True).flatten(1).sum(1)
    torch.testing.assert_close(published, torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]))


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_score_is_signed_and_differentiable(head: Head) -> None:
    output = output_of(head).requires_grad_(True)
    score = head.score(output, LABELS)
    torch.testing.assert_close(score, torch.where(LABELS == 1, head.logit(output), -head.logit(output)))
    (gradient,) = torch.autograd.grad(score.sum(), output)
    sign = head.sign if isinstance(head, OneLogit) else 1
    assert bool((gradient.flatten(1) * torch.where(LABELS == 1, sign, -sign)[:, None] > 0).all())


def test_scores_of_large_logits_stay_apart_but_tie_as_published() -> None:
    output = torch.tensor([[20.0], [30.0], [-200.0]])
    p, single = OneLogit().probability(output), OneLogit().probability(output, single_precision=True)
    assert p[0] < p[1] < 1
    assert single[0] == single[1] == 1
    assert float(p[2]) == pytest.approx(math.exp(-200))
    assert float(LogitMap(mean_of="probabilities").probability(output[2:, :, None, None])) == pytest.approx(
        math.exp(-200)
    )


def test_means_over_places() -> None:
    output = torch.tensor([[0.0, 3.0, -1.0, 6.0]]).view(1, 1, 2, 2)
    assert float(LogitMap().logit(output)) == 2.0
    mean_p = torch.sigmoid(output.double()).mean()
    assert float(LogitMap(mean_of="probabilities").probability(output)) == pytest.approx(float(mean_p))
    shares = LogitMap().start_relevance(output, torch.tensor([0])).flatten()
    torch.testing.assert_close(shares, -torch.tensor([0.0, 3.0, -1.0, 6.0]) / 8)


@pytest.mark.parametrize("head", [OneLogit(), LogitMap()])
def test_a_logit_of_zero_counts_as_positive(head: Head) -> None:
    output = torch.zeros((2, 1, 2, 2) if isinstance(head, LogitMap) else (2, 1))
    assert head.start_relevance(output, torch.tensor([1, 0])).flatten(1).sum(1).tolist() == [1, 1]


def test_classes() -> None:
    head, output = Classes(tuple(map(str, range(3)))), torch.tensor([[1.0, 4.0, -2.0], [0.0, -3.0, -1.0]])
    classes = torch.tensor([1, 2])
    assert (head.outputs, head.class_names) == (3, ("0", "1", "2"))
    torch.testing.assert_close(head.probability(output, classes), output.double().softmax(1)[[0, 1], [1, 2]])
    torch.testing.assert_close(head.probability(output), output.double().softmax(1).amax(1))
    assert head.decision(output).tolist() == [1, 0]
    assert head.score(output, classes).tolist() == [4, -1]
    assert head.start_relevance(output, classes).tolist() == [[0, 1, 0], [0, 0, -1]]
    assert head.start_relevance(output, classes, published=True).tolist() == [[0, 1, 0], [0, 0, 1]]
    with pytest.raises(ValueError, match="no logit of fake"):
        head.logit(output)


class Transfers(TorchDispatchMode):
    """Notes every operation that copies between devices, or asks for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, wanted = str(func), (kwargs or {}).get("device")
        moved = wanted is not None and isinstance(args[0], Tensor) and wanted != args[0].device
        if moved or "_local_scalar" in name or "lift_fresh" in name:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("head", [*HEADS.values(), Classes(tuple(map(str, range(3))))], ids=str)
def test_nothing_waits_for_the_device(head: Head) -> None:
    """On tensors that only pretend to lie on a GPU."""
    shape = (4, 1, 3, 2) if isinstance(head, LogitMap) else (4, head.outputs)
    with FakeTensorMode():
        output = torch.empty(shape, device="cuda")
        classes = torch.empty(4, dtype=torch.long, device="cuda")
        with Transfers() as transfers:
            results = [
                head.probability(output, classes),
                head.decision(output),
                head.score(output, classes),
                head.start_relevance(output, classes),
                head.start_relevance(output, classes, published=True),
            ]
    assert {result.device.type for result in results} == {"cuda"}
    assert transfers.seen == []


def extremes(size: int) -> Tensor:
    """Black and white in all patterns of two by two pixels, and noise."""
    patterns = torch.tensor(list(product((0, 255), repeat=4)), dtype=torch.uint8).view(-1, 1, 2, 2)
    noise = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return torch.cat([patterns.repeat(1, 3, size // 2, size // 2), noise])


@pytest.mark.parametrize("transform", [Normalise(), Normalise((0.5,) * 3, (0.25,) * 3), NearestResidual()], ids=str)
def test_bounds_are_reached_and_never_passed(transform: InputTransform) -> None:
    x = transform(extremes(8))
    bounds = transform.bounds()
    assert bounds is not None
    assert x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x.amin((0, 2, 3)), torch.tensor(bounds[0]))
    torch.testing.assert_close(x.amax((0, 2, 3)), torch.tensor(bounds[1]))


def test_residual_of_neighbours() -> None:
    images = extremes(8)[-4:]
    x = normalize(images / 255, IMAGENET_MEAN, IMAGENET_STD)
    coarse = interpolate(interpolate(x, scale_factor=0.5, mode="nearest"), scale_factor=2.0, mode="nearest")
    torch.testing.assert_close(NearestResidual()(images), (x - coarse) * 2 / 3)
    odd = NearestResidual()(images[..., :7, :])
    assert odd.shape == (4, 3, 6, 8)
    torch.testing.assert_close(odd, NearestResidual()(images[..., :6, :]))
    assert not odd[..., ::2, ::2].any()


def test_transforms_made_in_inference_mode_can_be_used_outside() -> None:
    transform = Normalise((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    with torch.inference_mode():
        transform(extremes(2))
    x = transform(extremes(2)).requires_grad_(True)
    x.sum().backward()
    assert x.grad is not None
