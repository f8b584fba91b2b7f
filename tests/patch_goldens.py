"""Golden data of the published patch classifiers: synthetic weights, images, and what came out."""

from __future__ import annotations

import importlib.util
import json
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch


class PatchGoldens:
    """The folder `reference/patch_forensics` of the reference data."""

    def __init__(self, shared_dir: Path, made: Path) -> None:
        self.folder, self.sample, self._made = shared_dir / "reference/patch_forensics", shared_dir, made

    @cached_property
    def networks(self) -> dict[str, Any]:
        return self.json("patch_networks")

    def json(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
        return found

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        with np.load(self.folder / f"{name}.npz") as arrays:
            return dict(arrays)

    def inputs(self, network: str) -> torch.Tensor:
        """Eight images as the networks see them, uint8."""
        pixels = self.arrays(f"inputs_{self.networks[network]['input_size']}")["x_u8"]
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    @cached_property
    def recipe(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location("make_patch_weights", self.folder / "make_patch_weights.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def state(self, network: str) -> dict[str, torch.Tensor]:
        made: dict[str, torch.Tensor] = self.recipe.make_state_dict(self.networks[network], 0)
        return made

    def run(self, network: str) -> Path:
        """`opt.yml` of a run with the synthetic weights as its best epoch."""
        folder = self._made / network
        if not folder.exists():
            folder.mkdir(parents=True)
            torch.save({"state_dict": self.state(network), "epoch": 3}, folder / "bestval_net_D.pth")
            entry = self.networks[network]
            lines = {
                "model": entry["model"],
                "which_model_netD": network,
                "fake_class_id": 0,
                "gpu_ids": "'-1'",
                "loadSize": entry["input_size"],
                "fineSize": entry["input_size"],
                "batch_size": 8,
                "seed": 0,
                "name": network,
                "checkpoints_dir": folder.parent,
            }
            (folder / "opt.yml").write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
        return folder / "opt.yml"
