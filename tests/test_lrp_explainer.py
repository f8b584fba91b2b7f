"""The explainer: conservation, batches, what is kept and what is freed, signs, feature maps."""

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from efficientnet_pytorch.utils import Conv2dDynamicSamePadding
from lrp_networks import GatedNet, TinyResNet, images, largest_pixels, randomize, towards
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

from detectors.networks import build_model
from lrp import ChannelStatistics, Explainer, RuleTable, UnknownLayerError, ZBox, rule_table
from lrp.explainer import Record, sign
from lrp.operations import Operation
from lrp.rules import AlphaBeta, Epsilon, Rule

NETWORKS: dict[str, Callable[[int], nn.Module]] = {"residual": TinyResNet, "gated": GatedNet}
RULES = ("beta0", "beta1", "betaada", "epsilon")


def explainer_of(network: str = "residual", rules: RuleTable | str = "beta0", outputs: int = 1) -> Explainer:
    return Explainer(randomize(NETWORKS[network](outputs)), table_of(network, rules), dtype=torch.float64)


def table_of(network: str, rules: RuleTable | str) -> RuleTable:
    """The residual network has a z-box at the image, as published."""
    if isinstance(rules, RuleTable):
        return rules
    return rule_table(rules, ZBox(-2.1, 2.6) if network == "residual" else None)


def names(explainer: Explainer) -> list[str]:
    return [name for name, _ in explainer.layers]


@dataclass(frozen=True)
class Spy:
    """A rule that notes what it is asked for."""

    rule: Rule
    calls: list[Operation]
    shares: list[list[float | None]]

    @property
    def needs_inputs(self) -> bool:
        return self.rule.needs_inputs

    def propagate(
        self, operation: Operation, inputs: tuple[Tensor, ...], relevance: Tensor, *, nonnegative: bool
    ) -> tuple[Tensor | None, ...]:
        passed = self.rule.propagate(operation, inputs, relevance, nonnegative=nonnegative)
        self.calls.append(operation)
        self.shares.append([None if share is None else float(share.sum()) for share in passed])
        return passed


def spied(name: str, network: str) -> tuple[RuleTable, list[Operation], list[list[float | None]]]:
    table = table_of(network, name)
    calls: list[Operation] = []
    shares: list[list[float | None]] = []

    def spy(rule: Rule) -> Any:
        return Spy(rule, calls, shares)

    by_kind = {kind: spy(rule) for kind, rule in table.by_kind.items()}
    first = None if table.first_convolution is None else spy(table.first_convolution)
    return RuleTable(by_kind, first), calls, shares


# Conservation


def without_losses(rule: Rule, first: Rule | None) -> Explainer:
    """A network without biases, under rules without noticeable stabilisers."""
    tiny: Any = Epsilon(1e-13)
    table = RuleTable({**rule_table("beta0").by_kind, "convolution": rule}, first)
    table = table.with_rules(dense=tiny, average_pool=tiny, sum=tiny)
    return Explainer(randomize(TinyResNet(bias=False)), table, dtype=torch.float64)


@pytest.mark.parametrize("rule", [AlphaBeta(0.0), Epsilon(1e-13)], ids=["beta0", "epsilon"])
@pytest.mark.parametrize("first", [ZBox(-2.1, 2.6, 1e-13), None], ids=["z-box", "same rule"])
def test_relevance_is_conserved_without_biases_and_stabilisers(rule: Rule, first: Rule | None) -> None:
    explainer = without_losses(rule, first)
    result = explainer.explain(
        images(4), towards("fake", "real", "fake", "real"), layers=names(explainer), conservation=True
    )
    assert result.input is not None
    torch.testing.assert_close(result.input.sum((1, 2, 3)), result.start, rtol=0.0, atol=1e-7)
    assert max(float(row.absorbed.abs().max()) for row in result.conservation) < 1e-7
    # the two branches of a residual block share what arrives
    branches = [result.channels[layer].total.sum(1) for layer in ("layer2.conv2", "layer2.shortcut.0")]
    assert not torch.allclose(branches[0], result.start, atol=1e-3)
    torch.testing.assert_close(branches[0] + branches[1], result.start, rtol=0.0, atol=1e-7)


def test_alpha_beta_absorbs_only_where_one_sign_is_missing() -> None:
    rows = (
        without_losses(AlphaBeta(1.0), None)
        .explain(images(4), towards("fake", "fake", "fake", "real"), conservation=True)
        .conservation
    )
    # six inputs to a unit of a shortcut, 27 and more elsewhere: some units there have contributions of one sign only
    losing = {row.layer for row in rows if float(row.absorbed.abs().max()) > 1e-7}
    assert losing
    assert all("shortcut" in layer for layer in losing)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rule", RULES)
def test_conservation_report_adds_up(rule: str, network: str) -> None:
    table, calls, shares = spied(rule, network)
    explainer = explainer_of(network, table)
    result = explainer.explain(images(3), towards("fake", "real", "real"), conservation=True)
    assert result.input is not None
    steps = explainer.program.steps
    handed: Counter[int] = Counter()
    scale = 2.0**512  # of relevance on its way in double precision
    handed[explainer.program.output] = float(result.start.sum())
    by_operation = {id(operation): given for operation, given in zip(calls, shares, strict=True)}
    rows = {row.layer: row for row in result.conservation}
    assert len(rows) == len(result.conservation) == len(calls)
    for index in reversed(range(len(steps))):
        step = steps[index]
        row, given = rows.get(step.name), by_operation.get(id(step.operation))
        if row is None or given is None:
            assert row is None
            assert given is None
            assert handed[index + 1] == 0.0  # only what hangs on a gate is left out
            continue
        assert row.kind == step.operation.kind
        assert row.received.shape == row.passed.shape == (3,)  # by sample: opposite signs do not cancel
        assert float(row.received.sum()) == pytest.approx(handed[index + 1], rel=1e-9, abs=1e-12)
        passed = sum(share for share in given if share is not None) / scale
        assert float(row.passed.sum()) == pytest.approx(passed, rel=1e-9, abs=1e-12)
        assert torch.equal(row.absorbed, row.received - row.passed)
        for value, share in zip(step.inputs, given, strict=True):
            handed[value] += (share or 0.0) / scale
    assert float(result.input.sum()) == pytest.approx(handed[0], rel=1e-9)
    absorbed = sum(float(row.absorbed.sum()) for row in result.conservation)
    assert float(result.start.sum() - result.input.sum()) == pytest.approx(absorbed, rel=1e-9, abs=1e-12)
    assert any(float(row.absorbed.abs().max()) > 1e-3 for row in result.conservation)


def test_conservation_report_stops_where_propagation_stops() -> None:
    explainer = explainer_of()
    rows = explainer.explain(images(), layers=["layer2.conv2"], input_relevance=False, conservation=True).conservation
    assert [row.layer for row in rows] == ["fc", "flatten", "avgpool", "layer2.relu@layer2_relu_1", "layer2.add_1"]
    assert [row.rule for row in rows] == ["Epsilon", "Restore", "Epsilon", "PassThrough", "Epsilon"]


# Batches, selections, and what is kept


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rule", RULES)
def test_batch_gives_what_single_images_give(rule: str, network: str) -> None:
    explainer = explainer_of(network, rule)
    x, targets = images(4), ["fake", "real", "real", "fake"]
    batch = explainer.explain(x, towards(*targets), layers=names(explainer))
    assert batch.input is not None
    for row, target in enumerate(targets):
        single = explainer.explain(x[row : row + 1], towards(target), layers=names(explainer))
        torch.testing.assert_close(batch.logits[row : row + 1], single.logits)
        torch.testing.assert_close(batch.input[row : row + 1], single.input, rtol=1e-8, atol=1e-11)
        for layer, statistics in single.channels.items():
            torch.testing.assert_close(batch.channels[layer].total[row], statistics.total[0], rtol=1e-8, atol=1e-11)
            torch.testing.assert_close(batch.channels[layer].absolute[row], statistics.absolute[0])


@pytest.mark.parametrize("network", NETWORKS)
def test_maps_sum_to_channels(network: str) -> None:
    explainer = explainer_of(network, "beta1")
    layers = names(explainer)
    maps = explainer.explain(images(3), layers=layers, keep="maps")
    channels = explainer.explain(images(3), layers=layers, keep="channels")
    assert list(maps.maps) == list(channels.channels)
    assert set(maps.maps) == set(layers)
    assert maps.channels == {}
    assert channels.maps == {}
    for layer, count in explainer.layers:
        relevance, statistics = maps.maps[layer], channels.channels[layer]
        assert relevance.shape[:2] == (3, count)
        torch.testing.assert_close(relevance.sum((2, 3)), statistics.total)
        torch.testing.assert_close(relevance.clamp(min=0).sum((2, 3)), statistics.positive)
        torch.testing.assert_close(relevance.abs().sum((1, 2, 3)), statistics.absolute)


def test_statistics_of_many_samples_are_those_of_each() -> None:
    relevance = torch.randn(7, 16, 256, 256, generator=torch.Generator().manual_seed(0))
    whole = ChannelStatistics.of(relevance)
    for number, one in enumerate(relevance.split(1)):
        torch.testing.assert_close(whole.positive[number], ChannelStatistics.of(one).positive[0], rtol=1e-6, atol=0.0)
    assert ChannelStatistics.of(relevance[:0]).positive.shape == (0, 16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_channel_statistics(dtype: torch.dtype) -> None:
    relevance = torch.tensor([[[[1.0, -2.0]], [[-0.5, 0.0]]], [[[0.0, 0.0]], [[4.0, 0.25]]]], dtype=dtype)
    statistics = ChannelStatistics.of(relevance)
    assert statistics.total.tolist() == [[-1.0, -0.5], [0.0, 4.25]]
    assert statistics.positive.tolist() == [[1.0, 0.0], [0.0, 4.25]]
    assert statistics.absolute.tolist() == [3.5, 4.25]
    assert statistics.total.dtype == statistics.absolute.dtype == torch.float64


@pytest.mark.parametrize("samples", [[2], [0, 1, 2, 3], [3, 0], [1, 1, 2, 1, 0], torch.tensor([2, 2])])
@pytest.mark.parametrize("network", NETWORKS)
def test_selected_samples_equal_passes_of_their_own(network: str, samples: Any) -> None:
    explainer = explainer_of(network)
    x = images(4)
    record = explainer.record(x)
    chosen = record.select(samples)
    start = sign(chosen.output)
    found = explainer.propagate(chosen, start)
    expected = explainer.explain(x[torch.as_tensor(samples)])
    torch.testing.assert_close(chosen.output, expected.logits)
    torch.testing.assert_close(found, expected.input, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("samples", [[0, 1, 2, 3], [1, 2]])
def test_a_selection_uses_the_record_up(samples: list[int]) -> None:
    explainer = explainer_of()
    record = explainer.record(images(4))
    saved = [StorageWeakRef(value.untyped_storage()) for value in record.values.values()]
    chosen = record.select(samples)
    assert record.values == {}
    with pytest.raises(KeyError):
        explainer.propagate(record, sign(record.output))
    # a selection of some frees what it was made from, a selection of all is that itself
    assert [storage.expired() for storage in saved] == [len(samples) < 4] * len(saved)
    explainer.propagate(chosen, sign(chosen.output))
    assert all(storage.expired() for storage in saved)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rule", RULES)
def test_propagation_leaves_saved_values_as_they_are(rule: str, network: str) -> None:
    explainer = explainer_of(network, rule)
    record = explainer.record(images())
    saved = {number: value.clone() for number, value in record.values.items()}
    start = sign(record.output)
    kept = Record(dict(record.values), record.reached, record.output)
    first = explainer.propagate(record, start)
    assert all(torch.equal(kept.values[number], value) for number, value in saved.items())
    second = explainer.propagate(kept, start)
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)
    assert torch.equal(start, sign(record.output))
    assert record.values == {}


def test_saved_values_are_freed_on_the_way() -> None:
    explainer = explainer_of()
    record = explainer.record(images())
    saved = {number: StorageWeakRef(value.untyped_storage()) for number, value in record.values.items()}
    place = {step.name: index for index, step in enumerate(explainer.program.steps)}
    first_reader = {number: min(explainer.program.consumers()[number]) for number in saved}
    alive: list[int] = []

    def visit(layer: str, relevance: Tensor) -> None:
        for number, storage in saved.items():
            assert storage.expired() == (first_reader[number] > place[layer]), (layer, number)
        alive.append(sum(not storage.expired() for storage in saved.values()))

    start = sign(record.output)
    explainer.propagate(record, start, layers=names(explainer), visit=visit)
    assert alive == sorted(alive, reverse=True)
    assert len(set(alive)) > 4
    assert all(storage.expired() for storage in saved.values())


@pytest.mark.parametrize("network", NETWORKS)
def test_maps_do_not_outlive_their_turn(network: str) -> None:
    explainer = explainer_of(network, "beta0")
    record = explainer.record(images())
    seen: list[StorageWeakRef] = []
    most = 0

    def visit(layer: str, relevance: Tensor) -> None:
        nonlocal most
        seen.append(StorageWeakRef(relevance.untyped_storage()))
        most = max(most, sum(not storage.expired() for storage in seen))

    explainer.propagate(record, sign(record.output), layers=names(explainer), visit=visit)
    assert len(seen) == len(explainer.layers)
    # the branches of a residual sum share no map either
    assert most == 1
    assert all(storage.expired() for storage in seen)


def test_many_explanations_do_not_grow_memory() -> None:
    explainer = explainer_of("gated", "beta1")
    x = images()

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    def explain() -> weakref.ref[Tensor]:
        result = explainer.explain(x, layers=names(explainer), keep="maps", conservation=True)
        largest_pixels(explainer, x, "depthwise", [0, 1])
        return weakref.ref(result.maps["stem"])

    explain()
    before = tensors()
    dead = [explain() for _ in range(20)]
    assert tensors() == before
    assert all(reference() is None for reference in dead)


def test_layers_below_the_last_asked_are_not_propagated() -> None:
    table, calls, _ = spied("beta0", "residual")
    explainer = explainer_of("residual", table)
    steps = explainer.program.steps
    for layer in names(explainer):
        calls.clear()
        result = explainer.explain(images(), layers=[layer], input_relevance=False)
        assert result.input is None
        assert list(result.channels) == [layer]
        last = explainer.program.index(layer)
        called = {id(operation) for operation in calls}
        below = [step.name for step in steps[: last + 1] if id(step.operation) in called]
        assert below == []
    # of the whole network each step exactly once
    calls.clear()
    explainer.explain(images())
    assert len(calls) == len(steps)
    # the branch beside the one asked for is left alone
    calls.clear()
    explainer.explain(images(), layers=["layer2.conv1"], input_relevance=False)
    beside = steps[explainer.program.index("layer2.shortcut.0")].operation
    assert all(operation is not beside for operation in calls)


def test_relevance_of_layers_does_not_depend_on_what_else_is_asked() -> None:
    explainer = explainer_of()
    everything = explainer.explain(images(), layers=names(explainer))
    for layer in names(explainer):
        alone = explainer.explain(images(), layers=[layer], input_relevance=False)
        assert torch.equal(alone.channels[layer].total, everything.channels[layer].total)


def test_unknown_layers() -> None:
    explainer = explainer_of("gated")
    with pytest.raises(UnknownLayerError, match=r"^the network has no layer 'conv7'; its layers are stem, depthwise"):
        explainer.explain(images(), layers=["conv7"])
    with pytest.raises(UnknownLayerError, match="'expand' receives no relevance of feature maps: it only feeds a gate"):
        explainer.explain(images(), layers=["stem", "expand"])
    with pytest.raises(UnknownLayerError, match="'fc' receives no relevance of feature maps: it is not a convolution"):
        largest_pixels(explainer, images(), "fc", [0, 0])
    with pytest.raises(ValueError, match="keep must be 'channels' or 'maps', got 'pixels'"):
        explainer.explain(images(), keep="pixels")


# Signs


class Linear(nn.Module):
    """f(x) = w . x, all of it in the image: what every pixel is evidence for is known."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 4 * 4, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(x, 1))


def linear_case(outputs: int = 1) -> tuple[nn.Module, Tensor, Tensor]:
    """Model, images with logits of both signs, contributions (N, K, 3, 4, 4)."""
    model, x = randomize(Linear(outputs)), images(8, size=4)
    weight = next(model.parameters()).detach()
    contributions = (weight[None] * x.flatten(1)[:, None]).reshape(8, outputs, 3, 4, 4)
    logits = contributions.sum((2, 3, 4))
    assert (logits > 0).any()
    assert (logits < 0).any()
    return model, x, contributions


@pytest.mark.parametrize("target", ["fake", "real"])
def test_positive_relevance_is_evidence_for_the_explained_class(target: str) -> None:
    model, x, contributions = linear_case()
    result = Explainer(model, dtype=torch.float64).explain(x, towards(target))
    assert result.input is not None
    evidence = contributions[:, 0] if target == "fake" else -contributions[:, 0]
    assert torch.equal(result.input > 0, evidence > 0)
    # on the published scale, whose start is +1 or -1
    expected = evidence / result.logits.abs()[:, :, None, None]
    torch.testing.assert_close(result.input, expected, rtol=1e-4, atol=1e-6)


def test_positive_relevance_is_evidence_for_the_explained_classes() -> None:
    model, x, contributions = linear_case(outputs=3)
    explainer = Explainer(model, dtype=torch.float64)
    for number in range(3):
        relevance = explainer.explain(x, towards(number)).input
        assert relevance is not None
        assert torch.equal(relevance > 0, contributions[:, number] > 0)


def test_published_signs() -> None:
    model, x, contributions = linear_case()
    logits = contributions.sum((1, 2, 3, 4))
    published = Explainer(model, dtype=torch.float64, published=True)
    plain = Explainer(model, dtype=torch.float64)
    for target, correct in (("fake", logits > 0), ("real", logits < 0)):
        theirs = published.explain(x, towards(target, published=True)).input
        ours = plain.explain(x, towards(target)).input
        assert theirs is not None
        assert ours is not None
        sign = 1.0 if target == "fake" else -1.0
        torch.testing.assert_close(theirs[correct], sign * ours[correct])
        # so on a correctly classified real, positive marks evidence for fake
        assert torch.equal(theirs[correct] > 0, contributions[:, 0][correct] > 0)


@pytest.mark.parametrize("network", NETWORKS)
def test_published_differs_by_the_batch_norm_factor_and_the_sign_of_reals_only(network: str) -> None:
    model, rules = randomize(NETWORKS[network](1)), table_of(network, "beta0")
    published = Explainer(model, rules, published=True, dtype=torch.float64)
    result = published.explain(images(4), towards("real", published=True))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.div_((1.0 + module.eps) ** 0.5)
                module.bias.div_((1.0 + module.eps) ** 0.5)
    explicit = Explainer(model, rules, dtype=torch.float64).explain(images(4), towards("real"))
    assert explicit.input is not None
    torch.testing.assert_close(result.logits, explicit.logits, rtol=1e-10, atol=1e-10)
    sign = torch.where(explicit.logits < 0, -1.0, 1.0).double()[:, :, None, None]
    assert result.input is not None
    torch.testing.assert_close(result.input, sign * explicit.input, rtol=1e-7, atol=1e-10)


# Feature maps


@pytest.mark.parametrize("network", NETWORKS)
def test_feature_maps_start_at_their_maximum(network: str) -> None:
    explainer = explainer_of(network)
    x = images(3)
    layer, count = explainer.layers[1]
    samples, channels = [0, 2, 2, 1, 0], [0, 1, count - 1, 1, 0]
    relevance, largest, position = largest_pixels(explainer, x, layer, channels, samples)
    assert relevance.shape == (5, *x.shape[1:])
    record = explainer.record(x, until=layer)
    for row, (sample, channel) in enumerate(zip(samples, channels, strict=True)):
        fmap = record.output[sample, channel]
        down, right = position[row].tolist()
        assert float(fmap[down, right]) == float(fmap.max()) == float(largest[row])
        start = torch.zeros_like(record.output[:1])
        start[0, channel, down, right] = 1.0
        expected = explainer.propagate(explainer.record(x[sample : sample + 1], until=layer), start)
        assert expected is not None
        torch.testing.assert_close(relevance[row : row + 1], expected, rtol=1e-8, atol=1e-12)
    # a map asked for twice is explained twice
    assert torch.equal(relevance[0], relevance[4])
    # by default map m belongs to image m
    alone, _, _ = largest_pixels(explainer, x, layer, channels[:3])
    again, _, _ = largest_pixels(explainer, x, layer, channels[:3], [0, 1, 2])
    assert torch.equal(alone, again)


def test_feature_maps_are_of_the_folded_convolution() -> None:
    model = randomize(TinyResNet())
    explainer = Explainer(model, dtype=torch.float64)
    x = images()
    _, largest, _ = largest_pixels(explainer, x, "layer1.conv1", [2, 3])
    with torch.no_grad():
        stem = model.maxpool(model.relu(model.bn1(model.conv1(x))))
        maps = model.layer1.bn1(model.layer1.conv1(stem))
    torch.testing.assert_close(largest, torch.stack([maps[0, 2].max(), maps[1, 3].max()]))


def test_relevance_of_a_feature_map_rule_by_rule() -> None:
    explainer = explainer_of()
    x = images(1)
    relevance, largest, position = largest_pixels(explainer, x, "layer1.conv1", [4])
    steps = explainer.program.steps
    assert [step.name for step in steps[:4]] == ["conv1", "relu", "maxpool", "layer1.conv1"]
    values = [x]
    for step in steps[:4]:
        values.append(step.operation.forward(values[-1].clone()))
    down, right = position[0].tolist()
    current = torch.zeros_like(values[4])
    current[0, 4, down, right] = 1.0
    assert float(values[4][0, 4, down, right]) == float(largest[0])
    # z+ written out for the one pixel, then the steps below
    kernel = steps[3].operation.weight[4].clamp(min=0)
    padded = torch.nn.functional.pad(values[3], (1, 1, 1, 1))
    share = padded[0, :, down : down + 3, right : right + 3] * kernel
    at_pool = torch.zeros_like(padded)
    at_pool[0, :, down : down + 3, right : right + 3] = share / share.sum()
    received = at_pool[..., 1:-1, 1:-1]
    for index in (2, 1, 0):
        operation, rule = steps[index].operation, explainer.rules[index]
        (received,) = rule.propagate(operation, (values[index],), received, nonnegative=False)
    torch.testing.assert_close(relevance, received, rtol=1e-9, atol=1e-12)


class Inception(nn.Module):
    """Branches with their own paddings, joined by channels: same, dilated, pooled with ceil_mode, strided pointwise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv2dDynamicSamePadding(3, 4, 3, stride=2)
        self.bn = nn.BatchNorm2d(4)
        self.same = Conv2dDynamicSamePadding(4, 4, 5, stride=2, groups=4)
        self.dilated = nn.Conv2d(4, 4, 3, 2, padding=2, dilation=2)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.point = nn.Conv2d(4, 4, 1, 2)
        self.norm = nn.BatchNorm2d(16)
        self.mix = nn.Conv2d(16, 6, (4, 3), padding="same")
        self.last = nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.cat([self.same(x), self.dilated(x), self.pool(x), self.point(x)], 1)
        return self.last(torch.relu(self.mix(self.norm(x)))).mean((2, 3))[:, :1]


FIELDS: dict[str, tuple[Callable[[], nn.Module], RuleTable]] = {
    "residual, z-box": (TinyResNet, rule_table("beta0", ZBox((-2.1, -2.2, -2.0), (2.6, 2.7, 2.8)))),
    "residual, adaptive": (TinyResNet, rule_table("betaada")),
    "gated": (GatedNet, rule_table("beta1")),
    "branches": (Inception, rule_table("beta0")),
    "branches, epsilon": (Inception, rule_table("epsilon", ZBox(-2.1, 2.6))),
}


@pytest.mark.parametrize("size", [(33, 33), (32, 47)])
@pytest.mark.parametrize("case", FIELDS)
def test_receptive_fields_hold_all_relevance_of_a_feature_map(case: str, size: tuple[int, int]) -> None:
    """What is cut out gives what the whole image gives, also where a field leaves the image."""
    build, table = FIELDS[case]
    explainer = Explainer(randomize(build()), table, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 3, *size, generator=generator, dtype=torch.float64)
    wanted = {layer: [(n % 3, n) for n in range(count)] for layer, count in explainer.layers}
    borders = 0
    for found in explainer.explain_feature_maps(x, wanted, batch_size=5):
        record = explainer.record(x, until=found.layer).select(found.samples)
        start, number = torch.zeros_like(record.output), torch.arange(len(found.samples))
        start[number, found.channels, found.row, found.column] = 1.0
        expected = explainer.propagate(record, start)
        torch.testing.assert_close(found.relevance, expected, rtol=1e-8, atol=1e-12)
        height, width = start.shape[2:]
        borders += int(((found.row % (height - 1) == 0) | (found.column % (width - 1) == 0)).sum())
    assert borders


def test_a_feature_map_costs_what_it_sees() -> None:
    looked_at: list[int] = []

    @dataclass(frozen=True)
    class Counting(AlphaBeta):
        def propagate(self, operation: Operation, inputs: tuple[Tensor, ...], *args: Any, **kwargs: Any) -> Any:
            looked_at.append(inputs[0].shape[2] * inputs[0].shape[3])
            return super().propagate(operation, inputs, *args, **kwargs)

    table = rule_table().with_rules(convolution=Counting())
    explainer = Explainer(randomize(TinyResNet()), table, dtype=torch.float64)
    x = images(2, size=64)
    for layer, most in (("conv1", 3 * 3), ("layer1.conv1", 3 * 3 + 9 * 9), ("layer1.conv2", 3 * 3 + 5 * 5 + 13 * 13)):
        looked_at.clear()
        largest_pixels(explainer, x, layer, [0, 1])
        assert 0 < sum(looked_at) <= most


# Where it runs


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rule", RULES)
def test_inference_mode(rule: str, network: str) -> None:
    expected = explainer_of(network, rule).explain(images()).input
    with torch.inference_mode():
        explainer = explainer_of(network, rule)
        x = images()
        assert torch.equal(explainer.explain(x).input, expected)  # type: ignore[arg-type]
        largest_pixels(explainer, x, explainer.layers[-1][0], [0, 1])
    assert torch.equal(explainer.explain(images()).input, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("network", [*NETWORKS, "branches"])
@pytest.mark.parametrize("rule", RULES)
def test_nothing_mixes_devices_or_waits_for_a_gpu(rule: str, network: str) -> None:
    """On tensors that only pretend to be on a GPU: those of two devices do not mix, and have no values to wait for."""
    build = Inception if network == "branches" else NETWORKS[network]
    x = images().float()
    explainer = Explainer(randomize(build()), table_of("residual", rule))
    layers = names(explainer)
    measured: dict[str, ChannelStatistics] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        explainer.program.to("cuda", torch.float32)
        record = explainer.record(x.to("cuda"))
        start = towards("fake", "real")(record.output)
        rows: list[Any] = []
        relevance = explainer.propagate(record, start, layers=layers, measure=measured.__setitem__, conservation=rows)
        assert relevance is not None
        tensors = [relevance, start, *(row.absorbed for row in rows), *(s.absolute for s in measured.values())]
        for found in explainer.explain_feature_maps(x.to("cuda"), {layer: [(0, 1), (1, 0)] for layer in layers}):
            tensors += [found.relevance, found.value, found.row, found.samples]
        assert {tensor.device.type for tensor in tensors} == {"cuda"}
    assert set(measured) == set(layers)


# Precision


class Deep(nn.Sequential):
    """Sixty convolutions whose relevance fades, in float32, into subnormal numbers and beyond."""

    def __init__(self, gain: float) -> None:
        layers = [nn.Sequential(nn.Conv2d(3 if n == 0 else 4, 4, 3, padding=1), nn.SiLU()) for n in range(60)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
        randomize(self, gain=gain)


@dataclass(frozen=True)
class Range(AlphaBeta):
    """Notes the sizes of relevance that pass."""

    sizes: list[Tensor] = field(default_factory=list)

    def propagate(
        self, operation: Operation, inputs: tuple[Tensor, ...], relevance: Tensor, *, nonnegative: bool
    ) -> tuple[Tensor | None, ...]:
        self.sizes.append(relevance.abs().flatten())
        return super().propagate(operation, inputs, relevance, nonnegative=nonnegative)


def share_of_subnormal(sizes: Tensor, dtype: torch.dtype) -> float:
    return float(((sizes > 0) & (sizes < torch.finfo(dtype).tiny)).float().mean())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_relevance_stays_out_of_the_subnormal_numbers(dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    model = build_model("efb0").eval()  # fresh: its logit is nearly all bias, and little relevance gets past that
    convolution = Range()
    table = rule_table().with_rules(convolution=convolution)
    explainer = Explainer(model, table, dtype=dtype)
    explainer.explain(images(1, size=32))
    sizes = torch.cat(convolution.sizes)
    assert share_of_subnormal(sizes, dtype) < 1e-4
    # most would be there without the power of two that they are walked with
    assert share_of_subnormal(sizes.double() / explainer._scale, dtype) > 0.5


@pytest.mark.parametrize("gain", [1e-3, 0.1, 1.0, 10.0, 1e3])
@pytest.mark.parametrize("rule", ["beta0", "beta1", "betaada"])
@pytest.mark.parametrize("published", [False, True])
def test_nothing_overflows_in_deep_networks_with_absurd_weights(rule: str, gain: float, published: bool) -> None:
    model = Deep(1.0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(gain)
                module.bias.mul_(gain)  # type: ignore[union-attr]
    explainer = Explainer(model, rule, published=published)
    result = explainer.explain(images(2), layers=names(explainer))
    if torch.isfinite(result.logits).all():
        assert torch.isfinite(result.input).all()  # type: ignore[arg-type]
        assert all(torch.isfinite(statistics.total).all() for statistics in result.channels.values())


@pytest.mark.parametrize("rule", ["beta0", "beta1", "epsilon"])
def test_the_scale_of_relevance_on_its_way_changes_no_bit(rule: str) -> None:
    model = nn.Sequential(*list(Deep(1.0))[:5], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    explainer = Explainer(randomize(model), rule)
    record = explainer.record(images().float())
    result = explainer.explain(images(), layers=names(explainer), keep="maps")
    walked = sign(record.output)
    for step, by in zip(reversed(explainer.program.steps), reversed(explainer.rules), strict=True):
        if step.name in result.maps:
            assert torch.equal(result.maps[step.name], walked)
        inputs = tuple(record.values[value] for value in step.inputs) if by.needs_inputs else ()
        (passed,) = by.propagate(step.operation, inputs, walked, nonnegative=step.nonnegative_inputs)
        assert passed is not None
        walked = passed
    assert torch.equal(result.input, walked)  # type: ignore[arg-type]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rule", ["beta0", "beta1"])
def test_bfloat16_agrees_roughly(rule: str, network: str) -> None:
    model = randomize(NETWORKS[network](1))
    rules = table_of(network, rule)
    exact, short = (Explainer(model, rules, dtype=dtype) for dtype in (torch.float64, torch.bfloat16))
    expected = exact.explain(images(4), layers=names(exact))
    found = short.explain(images(4), layers=names(short))
    assert found.logits.dtype == torch.float32
    assert found.input is not None
    assert expected.input is not None
    for ours, theirs in [(found.input, expected.input)] + [
        (found.channels[layer].total, expected.channels[layer].total) for layer in names(exact)
    ]:
        pair = torch.stack([ours.double().flatten(), theirs.flatten()])
        assert torch.isfinite(pair).all()
        assert float(torch.corrcoef(pair)[0, 1]) > 0.99


@pytest.mark.parametrize("rule", RULES)
def test_float32_agrees_with_float64(rule: str) -> None:
    model = randomize(GatedNet())
    found = Explainer(model, rule).explain(images(4)).input
    expected = Explainer(model, rule, dtype=torch.float64).explain(images(4)).input
    assert found is not None
    assert expected is not None
    assert found.dtype == torch.float32
    error = (found - expected).abs().sum((1, 2, 3)) / expected.abs().sum((1, 2, 3))
    assert float(error.max()) < 1e-3


def test_same_inputs_give_the_same_bytes() -> None:
    model = randomize(TinyResNet())
    first, second = (Explainer(model).explain(images()).input for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.numpy().tobytes() == second.numpy().tobytes()


@pytest.mark.parametrize("view", ["slices", "zeros", "interpolation"])
def test_resampling_conserves_relevance(view: str) -> None:
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "slices": lambda x: x[:, :, 1::2][..., ::3],
        "zeros": lambda x: F.pad(x, (1, 2, 0, 3)),
        "interpolation": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    }

    class Resampled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 1, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(functions[view](torch.relu(self.a(x)))).mean((2, 3))

    model = randomize(Resampled())
    with torch.no_grad():
        model.b.weight.abs_()  # without negative contributions nothing is absorbed below
    explainer = Explainer(model, dtype=torch.float64)
    maps = explainer.explain(images(), layers=["a", "b"], keep="maps").maps
    torch.testing.assert_close(maps["a"].sum((1, 2, 3)), maps["b"].sum((1, 2, 3)), rtol=1e-9, atol=1e-12)
    if view == "slices":
        assert not maps["a"][:, :, ::2].any()
        assert maps["a"][:, :, 1::2, ::3].any()
