"""Published detectors on networks of timm: vision transformers, CLIP with a linear head, ConvNeXt."""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from detectors.networks import Architecture, register_architecture
from detectors.timm_networks import build
from detectors.transforms import CLIP_MEAN, CLIP_STD, Normalise
from images.decoding import Crop, Resize

# From OpenAI's and open_clip's names, and those of the transformers package, to timm's; one after the other.
_CLIP_NAMES = (
    (r"^(visual|vision_model)\.(embeddings\.)?", "tower."),
    (r"^tower\.class_embedding$", "tower.cls_token"),
    (r"^tower\.(positional_embedding|position_embedding\.weight)$", "tower.pos_embed"),
    (r"^tower\.(conv1|patch_embedding)\.", "tower.patch_embed.proj."),
    (r"^tower\.(ln_pre|pre_layrnorm)\.", "tower.norm_pre."),
    (r"^tower\.(ln_post|post_layernorm)\.", "tower.norm."),
    (r"^tower\.(transformer\.resblocks|encoder\.layers)\.", "tower.blocks."),
    (r"\.(ln_|layer_norm)([12])\.", r".norm\2."),
    (r"\.self_attn\.", ".attn."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^visual_projection\.", "projection."),
    (r"^(weight|bias)$", r"fc.\1"),
)
_SEPARATE = ".attn.q_proj."
_LARGEST = 2**24
"""Numbers in a query, key or value matrix, of which the largest towers have some 2**22."""


class Wrapped(nn.Module):
    """A network of timm that is called `vit` in its files."""

    def __init__(self, name: str, outputs: int) -> None:
        super().__init__()
        self.vit = build(name, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.vit(x)


class TwoHeads(nn.Module):
    """A network of timm with 1024 outputs, and a linear layer on them."""

    def __init__(self, name: str, outputs: int) -> None:
        super().__init__()
        self.model = build(name, 1024)
        self.fc = nn.Linear(1024, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.model(x))


class ClipDetector(nn.Module):
    """The image tower of CLIP and a linear layer on its features.

    Args:
        name: Of the tower in timm.
        outputs: Logits.
        projected: Size of the projection of the features; without it the features themselves count.
        unit: Whether features are scaled to length one.
        sizes: Of the tower, where they are not those of its name.
    """

    def __init__(self, name: str, outputs: int, *, projected: int | None, unit: bool, **sizes: Any) -> None:
        super().__init__()
        self.tower: Any = build(name, 0, **sizes)
        features: int = self.tower.num_features  # type: ignore[assignment]
        self.projection = nn.Linear(features, projected, bias=False) if projected else nn.Identity()
        self.unit = unit
        self.fc = nn.Linear(projected or features, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.projection(self.tower(x))
        return self.fc(normalize(x, dim=-1) if self.unit else x)


def clip_names(state: Mapping[str, Tensor], *, projected: bool = True) -> dict[str, Tensor]:
    """Tensors of a CLIP model, of a head alone or of both under the names of `ClipDetector`; text towers left out."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in _CLIP_NAMES:
            name = re.sub(pattern, replacement, name)
        if name == "tower.proj":
            name, value = "projection.weight", value.t()
        if name.startswith(("tower.", "fc.", "projection." if projected else "fc.")):
            renamed[name] = value
    for name in [name for name in renamed if _SEPARATE in name]:
        three = [name.replace(_SEPARATE, f".attn.{letter}_proj.") for letter in "qkv"]
        parts = [renamed[part] for part in three if part in renamed]
        # a copy is made before shapes are compared, so only of what can be right
        if len(parts) == 3 and all(part.dim() > 0 and part.numel() <= _LARGEST for part in parts):
            renamed = {key: value for key, value in renamed.items() if key not in three}
            renamed[name.replace(_SEPARATE, ".attn.qkv.")] = torch.cat(parts)
    renamed.pop("tower.position_ids", None)
    for name in {"tower.cls_token", "tower.pos_embed"} & renamed.keys():
        renamed[name] = renamed[name][(None,) * (3 - renamed[name].dim())]
    return renamed


def _scaled_centre(shorter: int, side: int, interpolation: str = "bilinear") -> Crop:
    return Crop("center", side, Resize(shorter, interpolation=interpolation))


_COMMUNITY = Architecture(
    "community-forensics",
    partial(Wrapped, "vit_small_patch16_384"),
    last_layer="vit.head",
    gradcam_layer="",
    crop=_scaled_centre(440, 384),
    side=384,
    telltale="vit.cls_token",
    source="Park and Owens, CVPR 2025 (MIT)",
)
_QUICK, _EXACT = "vit_large_patch14_clip_quickgelu_224", "vit_large_patch14_clip_224"
_UNIVFD = Architecture(
    "univfd",
    partial(ClipDetector, _QUICK, projected=768, unit=False),
    last_layer="fc",
    gradcam_layer="",
    transform=Normalise(CLIP_MEAN, CLIP_STD),
    crop=Crop("center", 224),
    side=224,
    telltale="tower.cls_token",
    adapt=clip_names,
    backbone="CLIP ViT-L/14 of OpenAI",
    source="Ojha et al., CVPR 2023 (MIT)",
)

for _architecture in (
    _COMMUNITY,
    replace(
        _COMMUNITY,
        name="community-forensics-224",
        build=partial(Wrapped, "vit_small_patch16_224"),
        crop=_scaled_centre(256, 224),
        side=224,
    ),
    _UNIVFD,
    replace(
        _UNIVFD,
        name="clipbased",
        build=partial(ClipDetector, _EXACT, projected=None, unit=True),
        crop=_scaled_centre(224, 224, "bicubic"),
        adapt=partial(clip_names, projected=False),
        backbone="CLIP ViT-L-14 CommonPool.XL-s13B-b90K of LAION",
        source="Cozzolino et al., CVPRW 2024 (Apache-2.0)",
    ),
    replace(
        _UNIVFD,
        name="c2p-clip",
        build=partial(ClipDetector, _QUICK, projected=768, unit=True),
        crop=_scaled_centre(224, 224),
        backbone="",
        source="Tan et al., AAAI 2025 (no licence stated)",
    ),
    Architecture(
        "drct-convnext",
        partial(TwoHeads, "convnext_base"),
        last_layer="fc",
        gradcam_layer="model.stages.3",
        crop=Crop("center", 224),
        fake_class=1,
        telltale="model.stem.0.weight",
        source="Chen et al., ICML 2024 (no licence stated)",
    ),
):
    register_architecture(_architecture)
