"""Published detectors: golden outputs of the published classes, and inputs as their authors have them."""

import csv
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ranking_runs import Scripts

from detectors.networks import get_architecture

GOLDEN = {"resnet50_nodown": "resnet50-nodown", "npr": "npr", "safe": "safe", "ladeda9": "ladeda9"}


@pytest.fixture(scope="session")
def golden_folder(shared_dir: Path) -> Path:
    folder = shared_dir / "reference" / "published_detectors"
    if not folder.is_dir():
        pytest.skip(f"no golden outputs of published detectors in {shared_dir}")
    return folder


@pytest.fixture(scope="session")
def recipe(golden_folder: Path) -> ModuleType:
    """How weights and images of the golden outputs are drawn."""
    spec = importlib.util.spec_from_file_location("recipe", golden_folder / "recipe.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw(recipe: ModuleType, golden: Any, seed: int) -> dict[str, torch.Tensor]:
    state, _ = recipe.draw_state(golden["keys"].tolist(), golden["shapes"].tolist(), seed)
    # published counters have one dimension more
    return {key: torch.from_numpy(value.reshape(()) if "num_batches" in key else value) for key, value in state.items()}


@pytest.mark.parametrize("name", GOLDEN)
def test_outputs_are_those_of_the_published_class(golden_folder: Path, recipe: ModuleType, name: str) -> None:
    golden = np.load(golden_folder / f"{name}.npz")
    architecture = get_architecture(GOLDEN[name])
    sizes = [key.removeprefix("logits_") for key in golden if key.startswith("logits_")]
    assert sizes
    model = architecture.build(golden[f"logits_{sizes[0]}"].shape[1]).eval()
    model.load_state_dict(draw(recipe, golden, int(golden["weights_seed"])), strict=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == int(golden["parameters"])
    for size in sizes:
        expected = golden[f"logits_{size}"]
        height, width = map(int, size.split("x"))
        pixels = recipe.draw_images(int(golden[f"image_seed_{size}"]), len(expected), height, width)
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
            with torch.no_grad():
                found = model.to(dtype)(architecture.transform(images, dtype))  # type: ignore[call-arg]
            np.testing.assert_allclose(found.reshape(expected.shape).numpy(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["npr", "safe", "resnet50_nodown"])
def test_scores_of_the_command_line(
    golden_folder: Path, recipe: ModuleType, name: str, tmp_path: Path, scripts: Scripts
) -> None:
    """Other weights and images; expected is what the network says in double precision."""
    golden = np.load(golden_folder / f"{name}.npz")
    architecture = get_architecture(GOLDEN[name])
    state = draw(recipe, golden, 5)
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "d.pth")
    model = architecture.build(len(state[f"{architecture.last_layer}.weight"])).double().eval()
    model.load_state_dict(state)
    expected = {}
    for label, (folder, size) in enumerate((("0_real", (41, 64)), ("1_fake", (64, 40)))):
        (tmp_path / "data" / "gan" / folder).mkdir(parents=True)
        for number, pixels in enumerate(recipe.draw_images(7 + label, 2, *size)):
            path = tmp_path / "data" / "gan" / folder / f"{number}.png"
            Image.fromarray(pixels).save(path)
            with torch.no_grad():
                images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
                logits = model(architecture.transform(images, torch.float64)).flatten()  # type: ignore[call-arg]
            logit = float(logits[-1] - logits[:-1].sum())
            expected[f"gan/{folder}/{number}.png"] = 1 / (1 + np.exp(-logit))
    words = ["--detectors", f"d={GOLDEN[name]}:d.pth", "--dataset_dir", "data", "--gan_name", "gan", "--bootstrap", 5]
    run = scripts("evaluate_detector", *words, "--preprocessing", "as_is", "--output_dir", "out")
    assert run.code == 0, run.err
    with (tmp_path / "out/evaluation/d/gan/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["path"]: float(row["rgb"]) for row in rows} == pytest.approx(expected, abs=1e-4)
    assert {row["label"] for row in rows} == {"0", "1"}
    record = json.loads((tmp_path / "out/evaluation/d/gan/scores.csv.json").read_text())
    assert record["facts"]["arch"] == GOLDEN[name]
