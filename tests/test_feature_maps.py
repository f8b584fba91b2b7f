"""Feature maps observed and dropped, against hooks on the plain model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranking_runs import image_set
from torch import Tensor, nn

from detectors.detector import Detector
from detectors.feature_maps import FeatureMapNetwork, Observation, by_layer
from detectors.networks import build_model, get_architecture
from images.decoding import Crop
from passes.one_pass import PassBatch, run_pass
from passes.shared_forward import SharedForward
from utils.errors import UserError

CPU = torch.device("cpu")
Dropped = Mapping[str, Sequence[int]]


class Branches(nn.Module):
    """Convolutions with and without bias and batch norm, in-place activations, a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)  # bias and batch norm
        self.norm = nn.BatchNorm2d(6)
        self.left = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.left_norm = nn.BatchNorm2d(8)
        self.middle = nn.Conv2d(8, 6, 1)  # bias, no batch norm
        self.last = nn.Conv2d(6, 4, 1, bias=False)  # neither
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        stem = torch.relu(self.norm(self.stem(x)))
        left = self.relu(self.left_norm(self.left(stem)))
        total = torch.relu(self.middle(left) + stem)
        return self.fc(torch.relu(self.last(total)).mean((2, 3)))


def branches() -> nn.Module:
    torch.manual_seed(1)
    model = Branches().eval()
    for norm in (model.norm, model.left_norm):
        nn.init.uniform_(norm.weight, -1.5, 1.5)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return model


def seeded(arch: str) -> nn.Module:
    """A network whose batch norms fit its random weights, so that signals neither fade nor explode."""
    torch.manual_seed(2)
    model = build_model(arch).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))
    return model.eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "branches": branches,
    "resnet18": lambda: seeded("resnet18"),
    "efb0": lambda: seeded("efb0"),
}
VARIANTS: dict[str, dict[str, Dropped]] = {
    "branches": {
        "none": {},
        "first": {"stem": [0, 3], "last": [1]},
        "again": {"stem": [3, 0, 0], "middle": [2]},
        "deep": {"middle": [1, 5]},
        "deeper": {"last": [0, 1, 2, 3]},
        "whole": {"left": range(8)},
        "also none": {},
    },
    "resnet18": {
        "none": {},
        "early": {"conv1": [5], "layer2.0.downsample.0": [0, 1]},
        "shortcut": {"layer3.0.downsample.0": [7, 200], "layer4.1.conv2": [3]},
        "late": {"layer4.0.conv1": [1, 2, 3]},
        "later": {"layer4.0.conv1": [1, 2, 3], "layer4.1.conv1": [9]},
    },
    "efb0": {
        "none": {},
        "stem": {"_conv_stem": [6]},
        "gate": {"_blocks.4._se_reduce": [0], "_blocks.5._project_conv": [3]},
        "head": {"_conv_head": [11, 500]},
    },
}


def network(name: str) -> tuple[nn.Module, FeatureMapNetwork, Tensor]:
    model = MODELS[name]()
    detector = Detector(get_architecture("resnet18"), model)
    torch.manual_seed(0)
    return model, detector.feature_maps(), torch.randn(3, 3, 40, 36)


@torch.no_grad()
def hooked(model: nn.Module, x: Tensor, dropped: Dropped) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits with maps set to 0 before batch norm, and the largest value of every map."""
    maxima: dict[str, Tensor] = {}
    handles = []
    for layer, module in model.named_modules():
        if isinstance(module, nn.Conv2d):

            def hook(module: nn.Module, inputs: object, output: Tensor, layer: str = layer) -> Tensor:
                output = output.clone()
                maxima[layer] = output.amax((2, 3))
                output[:, list(dropped.get(layer, ()))] = 0
                return output

            handles.append(module.register_forward_hook(hook))
    logits = model(x)
    for handle in handles:
        handle.remove()
    return logits, maxima


@pytest.mark.parametrize("name", MODELS)
def test_dropout_sets_raw_maps_to_zero(name: str) -> None:
    model, maps, x = network(name)
    found = maps.dropping(VARIANTS[name])(x)
    assert list(found) == list(VARIANTS[name])
    plain, _ = hooked(model, x, {})
    for variant, dropped in VARIANTS[name].items():
        expected, _ = hooked(model, x, dropped)
        torch.testing.assert_close(found[variant], expected, rtol=1e-4, atol=1e-4)
        if dropped:
            assert (expected - plain).abs().max() > 1e-3, "this variant tests nothing"


@pytest.mark.parametrize("name", MODELS)
def test_variants_together_are_variants_alone(name: str) -> None:
    _, maps, x = network(name)
    before = x.clone()
    together = maps.dropping(VARIANTS[name])(x)
    for variant, dropped in VARIANTS[name].items():
        assert torch.equal(together[variant], maps.dropping({variant: dropped})(x)[variant])
    backwards = dict(reversed(VARIANTS[name].items()))
    assert all(torch.equal(together[n], logits) for n, logits in maps.dropping(backwards)(x).items())
    assert torch.equal(x, before)


def test_common_layers_are_run_once() -> None:
    _, maps, x = network("branches")
    runs = []
    program = maps._fast
    convolution = program.steps[program.index("stem")].operation
    forward = convolution.forward
    convolution.forward = lambda *inputs: runs.append(1) or forward(*inputs)  # type: ignore[method-assign]
    maps.dropping(VARIANTS["branches"])(x)
    assert len(runs) == 1


@pytest.mark.parametrize("name", MODELS)
def test_maxima_of_any_number_of_maps_from_one_pass(name: str) -> None:
    model, maps, x = network(name)
    logits, maxima = hooked(model, x, {})
    assert maps.layers == {layer: values.shape[1] for layer, values in maxima.items()}
    observed = maps.observing({layer: range(count) for layer, count in maps.layers.items()})(x)
    assert observed.logits is not None
    torch.testing.assert_close(observed.logits, logits, rtol=1e-4, atol=1e-5)
    for layer, values in maxima.items():
        torch.testing.assert_close(observed.maxima[layer], values, rtol=1e-4, atol=1e-5)
        some = maps.observing({layer: [2, 0]}, logits=False)(x).select([(layer, 2), (layer, 0)])
        assert torch.equal(some, observed.maxima[layer][:, [2, 0]])
        wider = list(range(1, max(2, maps.layers[layer] // 2)))
        assert torch.equal(
            maps.observing({layer: wider}, logits=False)(x).maxima[layer], observed.maxima[layer][:, wider]
        )


def test_a_pass_stops_after_the_last_layer_needed() -> None:
    _, maps, x = network("branches")
    program = maps._raw
    after = program.steps[program.index("left") + 1].operation
    after.forward = lambda *inputs: pytest.fail("went on")  # type: ignore[method-assign]
    assert maps.observing({"stem": [1], "left": [3]}, logits=False)(x).logits is None
    with pytest.raises(pytest.fail.Exception, match="went on"):
        maps.observing({"stem": [1]})(x)


@pytest.mark.parametrize(
    ("maps", "words"),
    [({"stem9": [0]}, "no layer stem9"), ({"stem": [6]}, "no map 6"), ({"stem": [-1]}, "no map -1")],
)
def test_maps_that_the_detector_lacks_are_named(maps: Dropped, words: str) -> None:
    _, network_, _ = network("branches")
    for call in (
        lambda: network_.observing(maps),
        lambda: network_.dropping({"a": {}, "b": maps}),
    ):
        with pytest.raises(UserError, match=words):
            call()


def test_bf16_is_close() -> None:
    model, _, x = network("resnet18")
    maps = FeatureMapNetwork(model, "resnet18", torch.bfloat16)
    expected, maxima = hooked(model, x, VARIANTS["resnet18"]["early"])
    found = maps.dropping(VARIANTS["resnet18"])(x)["early"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)
    torch.testing.assert_close(
        maps.observing({"conv1": [3]})(x).maxima["conv1"][:, 0], maxima["conv1"][:, 3], rtol=0.03, atol=0.03
    )


def test_the_model_is_left_as_it_was() -> None:
    model, maps, x = network("branches")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    logits, _ = hooked(model, x, {})
    maps.dropping(VARIANTS["branches"])(x)
    maps.observing({"left": [0]})(x)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(hooked(model, x, {})[0], logits)


def test_by_layer() -> None:
    assert by_layer([("b", 2), ("a", 1), ("b", 0), ("b", 2)]) == {"b": [0, 2], "a": [1]}


class _Watcher:
    """Asks for maps of one kind of image and keeps what it gets."""

    def __init__(self, name: str, forward: SharedForward, maps: Sequence[tuple[str, int]], *, grey: bool) -> None:
        self.name, self.forward, self.maps = name, forward, maps
        self.kind = "grayscale" if grey else "rgb"
        forward.request(self.kind, by_layer(maps))  # type: ignore[arg-type]
        self.values: list[Tensor] = []

    def update(self, batch: PassBatch) -> None:
        self.values.append(self.forward.of(batch, self.kind).select(self.maps))  # type: ignore[arg-type]

    def state(self) -> dict[str, np.ndarray]:
        return {}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None: ...

    def merge(self, state: Mapping[str, np.ndarray]) -> None: ...


def test_collectors_share_one_forward_pass(small_images: Path) -> None:
    detector = Detector(get_architecture("resnet18"), seeded("resnet18"))
    maps = detector.feature_maps()
    calls: list[int] = []
    observing = maps.observing

    def counted(*args: Any, **more: Any) -> Callable[[Tensor], Observation]:
        observe = observing(*args, **more)

        def count(inputs: Tensor) -> Observation:
            calls.append(len(inputs))
            return observe(inputs)

        return count

    maps.observing = counted  # type: ignore[method-assign]

    def run(*watchers: _Watcher) -> None:
        run_pass(
            image_set(small_images),
            {watcher.name: watcher for watcher in watchers},
            device=CPU,
            batch_size=6,
            crop=Crop("none"),
        )

    first, second = [("conv1", 3), ("layer2.0.conv1", 0)], [("layer2.0.conv1", 7), ("conv1", 3)]
    forward = SharedForward(detector)
    shared = [_Watcher("a", forward, first, grey=False), _Watcher("b", forward, second, grey=False)]
    shared += [_Watcher("c", forward, second, grey=True)]
    run(*shared)
    assert calls == [6, 6, 5, 5]
    for watcher, grey in zip(shared, (False, False, True), strict=True):
        alone = _Watcher("alone", SharedForward(detector), watcher.maps, grey=grey)
        run(alone)
        assert torch.equal(torch.cat(alone.values), torch.cat(watcher.values))
    assert not torch.equal(torch.cat(shared[1].values), torch.cat(shared[2].values))
