"""Detectors on networks of timm: names of published files, inputs, and what is said where timm or a file is missing."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ranking_runs import Scripts
from torch import Tensor, nn
from torch.nn.functional import normalize

from detectors.choice import DetectorChoice
from detectors.detector import load_detector
from detectors.networks import Architecture, get_architecture, register_architecture, unregister_architecture
from detectors.timm_networks import load_timm
from detectors.vision_transformers import ClipDetector, clip_names
from utils.errors import UserError

timm = pytest.importorskip("timm")

WIDTH, SIDE, PATCH = 32, 64, 32
SIZES = {"embed_dim": WIDTH, "depth": 2, "num_heads": 2, "img_size": SIDE}


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A residual attention block under OpenAI's names."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(WIDTH, 4 * WIDTH), "c_proj": nn.Linear(4 * WIDTH, WIDTH)})
        self.gelu = QuickGELU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp["c_proj"](self.gelu(self.mlp["c_fc"](self.ln_2(x))))


class Tower(nn.Module):
    """CLIP's image tower, written from its description (Radford et al., ICML 2021), under OpenAI's names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn((SIDE // PATCH) ** 2 + 1, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = nn.ModuleDict({"resblocks": nn.Sequential(Block(), Block())})
        self.proj = nn.Parameter(torch.randn(WIDTH, 24))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer["resblocks"](self.ln_pre(x))[:, 0])


def of_openai(tower: Tower) -> dict[str, Tensor]:
    return {**{f"visual.{key}": value for key, value in tower.state_dict().items()}, "logit_scale": torch.ones(())}


def of_transformers(tower: Tower) -> dict[str, Tensor]:
    """The same under the names of the transformers package, as C2P-CLIP has them."""
    state = tower.state_dict()
    found = {
        "vision_model.embeddings.class_embedding": state["class_embedding"],
        "vision_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "vision_model.embeddings.position_ids": torch.arange(5)[None],
        "vision_model.embeddings.patch_embedding.weight": state["conv1.weight"],
        "visual_projection.weight": state["proj"].t(),
        "text_model.final_layer_norm.weight": torch.ones(3),
    }
    for kind in ("weight", "bias"):
        found[f"vision_model.pre_layrnorm.{kind}"] = state[f"ln_pre.{kind}"]
        found[f"vision_model.post_layernorm.{kind}"] = state[f"ln_post.{kind}"]
        for number in range(2):
            here, there = f"vision_model.encoder.layers.{number}", f"transformer.resblocks.{number}"
            for letter, part in zip("qkv", state[f"{there}.attn.in_proj_{kind}"].chunk(3), strict=True):
                found[f"{here}.self_attn.{letter}_proj.{kind}"] = part
            found[f"{here}.self_attn.out_proj.{kind}"] = state[f"{there}.attn.out_proj.{kind}"]
            for new, old in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2")):
                found[f"{here}.{new}.{kind}"] = state[f"{there}.{old}.{kind}"]
            for new, old in (("fc1", "c_fc"), ("fc2", "c_proj")):
                found[f"{here}.mlp.{new}.{kind}"] = state[f"{there}.mlp.{old}.{kind}"]
    return found


@pytest.fixture
def small() -> Iterator[str]:
    """UnivFD with a tower of two blocks."""
    name = "vit_base_patch32_clip_quickgelu_224"
    build = partial(ClipDetector, name, projected=24, unit=False, **SIZES)
    entry = get_architecture("univfd")
    values = {field: getattr(entry, field) for field in ("transform", "telltale", "adapt", "backbone")}
    register_architecture(Architecture("small-clip", build, "fc", "", side=SIDE, **values))
    yield "small-clip"
    unregister_architecture("small-clip")


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("names", [of_openai, of_transformers])
def test_clip_of_either_package(unit: bool, names: object) -> None:
    torch.manual_seed(0)
    tower = Tower().double().eval()
    head = nn.Linear(24, 1).double()
    state = clip_names({**names(tower), **head.state_dict()})  # type: ignore[operator]
    model = ClipDetector("vit_base_patch32_clip_quickgelu_224", 1, projected=24, unit=unit, **SIZES).double().eval()
    model.load_state_dict(state, strict=True)
    x = torch.randn(3, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        features = tower(x) @ tower.proj
        expected = head(normalize(features, dim=-1) if unit else features)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-9)


def test_a_head_needs_its_backbone(small: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower, head = Tower(), nn.Linear(24, 1)
    torch.save(head.state_dict(), tmp_path / "head.pth")
    with pytest.raises(UserError, match=r"head alone.*CLIP ViT-L/14 of OpenAI.*--backbone FILE"):
        load_detector(small, tmp_path / "head.pth", "cpu")
    torch.save(of_openai(tower), tmp_path / "clip.pth")
    choice = DetectorChoice(small, weights=tmp_path / "head.pth", device="cpu", backbone=tmp_path / "clip.pth")
    detector = load_detector(choice)
    assert len(detector.facts()["backbone"]) == 64
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    with torch.no_grad():
        expected = torch.sigmoid(head(tower.eval()(detector.inputs(images)) @ tower.proj)[:, 0]).double()
    torch.testing.assert_close(detector.probability(images), expected, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="takes images of 64x64 pixels, not 64x65"):
        detector.inputs(torch.zeros(1, 3, 64, 65, dtype=torch.uint8))


def test_a_damaged_clip_is_refused_before_it_is_unfolded(small: str, tmp_path: Path) -> None:
    state = {**of_transformers(Tower()), "fc.weight": torch.zeros(1, 24), "fc.bias": torch.zeros(1)}
    whole = dict(state)
    state["vision_model.encoder.layers.0.self_attn.q_proj.weight"] = torch.zeros(1).expand(10**13)
    for damaged in (state, {key: value for key, value in whole.items() if not key.endswith("k_proj.bias")}):
        torch.save(damaged, tmp_path / "w.pth")
        with pytest.raises(UserError, match="weights"):
            load_detector(small, tmp_path / "w.pth", "cpu")
    torch.save(whole, tmp_path / "w.pth")
    load_detector(small, tmp_path / "w.pth", "cpu")


def test_networks_of_timm(tmp_path: Path, scripts: Scripts, small_images: Path) -> None:
    """Names of its own state, two outputs of which 0 is fake, and its own scaling and crop."""
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=2).eval()
    torch.save({"state_dict": model.state_dict(), "args": None}, tmp_path / "best.pth.tar")
    detectors = ["cnn=timm:test_efficientnet:best.pth.tar", "vit=timm:test_vit:vit.pth"]
    torch.save(timm.create_model("test_vit", num_classes=2).state_dict(), tmp_path / "vit.pth")
    words = ["--dataset_dir", small_images, "--gan_name", "gan", "--bootstrap", 5, "--fake_class", 0]
    run = scripts("evaluate_detector", "--detectors", *detectors, *words, "--output_dir", "out")
    assert run.code == 0, run.err
    detector = load_detector("timm:test_efficientnet", tmp_path / "best.pth.tar", "cpu", fake_class=0)
    assert (
        detector.architecture.crop.size == detector.architecture.transform(torch.zeros(1, 3, 160, 160).byte()).shape[-1]
    )
    images = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    with torch.no_grad():
        expected = model(detector.inputs(images)).double().softmax(1)[:, 0]
    torch.testing.assert_close(detector.probability(images), expected, rtol=0, atol=1e-6)
    report = detector.explainer("epsilon").explain(detector.inputs(images), conservation=True)
    assert len(report.conservation) > 10


def test_a_transformer_is_explained_beside_a_convolutional_network(
    tmp_path: Path, scripts: Scripts, small_images: Path
) -> None:
    torch.manual_seed(0)
    for name in ("vit_tiny_patch16_224", "test_efficientnet"):
        torch.save(timm.create_model(name, num_classes=2).state_dict(), tmp_path / f"{name}.pth")
    detectors = ["vit=timm:vit_tiny_patch16_224:vit_tiny_patch16_224.pth,fake_class=0"]
    detectors += ["cnn=timm:test_efficientnet:test_efficientnet.pth,fake_class=1"]
    words = ["--images", small_images / "gan/1_fake/a.png", "--output_dir", "out", "--conservation"]
    run = scripts("ud_lrp", "--detectors", *detectors, *words)
    assert run.code == 0, run.err
    assert Path("out/lrp/side_by_side/vit-cnn-beta0-label/contact_sheet_001.png").is_file()
    shapes = {path.parts[2]: np.load(path)["relevance"].shape for path in Path("out/lrp").rglob("a.npz")}
    assert shapes == {"timm:vit_tiny_patch16_224": (224, 224), "timm:test_efficientnet": (160, 160)}


def test_networks_have_the_published_names_and_sizes() -> None:
    with torch.device("meta"):
        state = get_architecture("community-forensics").build(1).state_dict()
        drct = get_architecture("drct-convnext").build(2).state_dict()
        clip = get_architecture("clipbased").build(1).state_dict()
    assert len(state) == 152
    assert sum(value.numel() for value in state.values()) == 21_811_969
    assert state["vit.pos_embed"].shape == (1, 577, 384)
    assert (drct["model.head.fc.weight"].shape, drct["fc.weight"].shape) == ((1024, 1024), (2, 1024))
    assert clip["fc.weight"].shape == (1, 1024)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"timm:resnet5: timm \S+ has no such network: perhaps .*resnet5"):
        get_architecture("timm:resnet5")
    monkeypatch.setitem(sys.modules, "timm", None)
    load_timm.cache_clear()
    for build in (lambda: get_architecture("timm:resnet14t"), lambda: get_architecture("univfd").build(1)):
        with pytest.raises(UserError, match="pip install timm"):
            build()
