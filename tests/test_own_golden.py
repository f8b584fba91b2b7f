"""The shipped detectors against numbers kept in `tests/golden/`: what a run without reference data proves.

The numbers were computed by this code while it agreed with the published implementation (`test_lrp_golden.py`,
`test_analyses_golden.py`). After an intended change: `python tests/test_own_golden.py` writes them anew.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from detectors.detector import load_detector
from fmap_ranking.ffrs import FFRS
from lrp import Explainer
from mini_forensynths.photos import cut_tiles, find_photos, load_photo

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden" / "mini.json"
CASES = [("resnet50", "mini"), ("efb0", "mini"), ("efb0", "mini_cr")]
TILE, IMAGES, TOP = 96, 3, 12


def measure(arch: str, weights: str) -> dict[str, object]:
    """Logits, relevance of the pixels and FF-RS of tiles of three photographs, in float64."""
    detector = load_detector(arch, ROOT / "weights" / arch / f"{weights}.safetensors", "cpu")
    tiles = [cut_tiles(load_photo(photo, TILE), TILE, 1)[0] for photo in find_photos(None)[:IMAGES]]
    x = detector.inputs(torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2)).double()
    table = detector.architecture.rules("beta0", detector.architecture.transform.bounds())
    explainer = Explainer(detector.model, table, dtype=torch.float64)
    layers = explainer.layers
    result = explainer.explain(x, layers=[name for name, _ in layers])
    assert result.input is not None
    ffrs = FFRS(layers)
    channels = {name: result.channels[name] for name, _ in layers}
    ffrs.update(
        ffrs.stack(
            {name: found.positive for name, found in channels.items()},
            {name: found.absolute for name, found in channels.items()},
        )
    )
    ranking = ffrs.result()
    return {
        "logits": result.logits[:, 0].tolist(),
        "relevance_by_colour": result.input.sum((2, 3)).tolist(),
        "absolute_relevance": result.input.abs().sum((1, 2, 3)).tolist(),
        "omega_top": {
            fmap.key: value for fmap, value in zip(ranking.maps[:TOP], ranking.values.tolist(), strict=False)
        },
    }


@pytest.mark.parametrize(("arch", "weights"), CASES)
def test_shipped_detector_is_explained_as_before(arch: str, weights: str) -> None:
    golden, found = json.loads(GOLDEN.read_text())[f"{arch}/{weights}"], measure(arch, weights)
    for name in ("logits", "relevance_by_colour", "absolute_relevance"):
        np.testing.assert_allclose(found[name], golden[name], rtol=1e-5, atol=1e-7, err_msg=name)
    assert found["omega_top"] == pytest.approx(golden["omega_top"], rel=1e-5)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({f"{arch}/{name}": measure(arch, name) for arch, name in CASES}, indent=1) + "\n")
