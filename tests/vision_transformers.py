"""Small vision transformers for the tests, in the layouts of timm, torchvision, OpenAI's CLIP and Hugging Face's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

SIZE = 32
"""Sides of the images that all of them take."""


def of_timm(**options: Any) -> nn.Module:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    shape = {"img_size": SIZE, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 1}
    return timm.models.vision_transformer.VisionTransformer(**(shape | options))


def of_torchvision() -> nn.Module:
    return torchvision.models.VisionTransformer(SIZE, 8, 2, 3, 24, 48, num_classes=1)


def convnext_of_torchvision() -> nn.Module:
    blocks = [CNBlockConfig(6, 12, 1), CNBlockConfig(12, None, 1)]
    return ConvNeXt(blocks, layer_scale=0.5, num_classes=1)


def convnext_of_timm() -> nn.Module:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    return timm.models.convnext.ConvNeXt(depths=(1, 1, 0, 0), dims=(6, 12, 12, 12), ls_init_value=0.5, num_classes=1)


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Float32LayerNorm(nn.LayerNorm):
    """Casts, as OpenAI's does; to a type that loses nothing here."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.type(torch.float64)).type(x.dtype)


class OpenAIBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1 = Float32LayerNorm(width)
        self.mlp = nn.Sequential()
        for name, module in (("c_fc", nn.Linear(width, 48)), ("gelu", QuickGELU()), ("c_proj", nn.Linear(48, width))):
            self.mlp.add_module(name, module)
        self.ln_2 = Float32LayerNorm(width)
        self.attn_mask = None

    def attention(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x, need_weights=False, attn_mask=self.attn_mask)[0]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class OpenAITransformer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*[OpenAIBlock(width, heads) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class OpenAIVisual(nn.Module):
    """CLIP's visual tower with tokens before images, L2-normalised features and a linear head."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 8, stride=8, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(17, width))
        self.ln_pre, self.ln_post = Float32LayerNorm(width), Float32LayerNorm(width)
        self.transformer = OpenAITransformer(width, 3)
        self.proj = nn.Parameter(torch.randn(width, 10))
        self.fc = nn.Linear(10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = x.reshape(x.shape[0], x.shape[1], -1)
        x = x.permute(0, 2, 1)
        zeros = torch.zeros(x.shape[0], 1, x.shape[-1], dtype=x.dtype, device=x.device)
        x = torch.cat([self.class_embedding.to(x.dtype) + zeros, x], dim=1)
        x = self.ln_pre(x + self.positional_embedding.to(x.dtype))
        x = self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        x = self.ln_post(x[:, 0, :]) @ self.proj
        return self.fc(x / x.norm(dim=-1, keepdim=True))


class HuggingFaceAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], -1, 8)
        q, k, v = (part(x).view(shape).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj))
        weights = F.softmax(torch.matmul(q, k.transpose(2, 3)) * 8**-0.5, dim=-1)
        weights = F.dropout(weights, p=0.1, training=self.training)
        x = torch.matmul(weights, v).transpose(1, 2).contiguous()
        return self.out_proj(x.reshape(*x.shape[:2], -1).contiguous())


class HuggingFaceMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.activation_fn, self.fc1, self.fc2 = QuickGELU(), nn.Linear(width, 48), nn.Linear(48, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation_fn(self.fc1(x)))


class HuggingFaceLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = HuggingFaceAttention(width), HuggingFaceMLP(width)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x = x + self.self_attn(self.layer_norm1(x))
        return (x + self.mlp(self.layer_norm2(x)),)


class HuggingFaceVisual(nn.Module):
    """CLIP's visual tower with positions from an embedding and the projection as a layer."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.patch_embedding = nn.Conv2d(3, width, 8, stride=8, bias=False)
        self.position_embedding = nn.Embedding(17, width)
        self.register_buffer("position_ids", torch.arange(17).expand((1, -1)), persistent=False)
        self.pre_layrnorm, self.post_layernorm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.layers = nn.ModuleList([HuggingFaceLayer(width) for _ in range(2)])
        self.visual_projection = nn.Linear(width, 10, bias=False)
        self.fc = nn.Linear(10, 1)

    def forward(self, pixel_values: Tensor, output_attentions: bool = False) -> Tensor:
        batch_size = pixel_values.shape[0]
        patches = self.patch_embedding(pixel_values.to(dtype=self.patch_embedding.weight.dtype))
        classes = self.class_embedding.expand(batch_size, 1, -1)
        x = torch.cat([classes, patches.flatten(2).transpose(1, 2)], dim=1)
        x = self.pre_layrnorm(x + self.position_embedding(self.position_ids))
        for layer in self.layers:
            x = layer(x)[0]
        return self.fc(F.normalize(self.visual_projection(self.post_layernorm(x[:, 0, :])), dim=-1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "timm": of_timm,
    "timm, registers, layer scale, mean": lambda: of_timm(
        reg_tokens=2, init_values=0.5, global_pool="avg", no_embed_class=True, fc_norm=False
    ),
    "timm, normalised queries": lambda: of_timm(qk_norm=True, qkv_bias=False, pre_norm=True),
    "torchvision": of_torchvision,
    "CLIP of OpenAI": OpenAIVisual,
    "CLIP of Hugging Face": HuggingFaceVisual,
    "ConvNeXt of torchvision": convnext_of_torchvision,
    "ConvNeXt of timm": convnext_of_timm,
}


def randomized(network: nn.Module) -> nn.Module:
    """Seeded weights, scales, shifts and embeddings that all matter; in evaluation mode, float64."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.double().eval().named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.dim() < 2 and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * noise)
            elif name.endswith(("weight", "proj")):
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(0.3 * noise)
    return network


def pictures(count: int = 2) -> Tensor:
    """Normalised images (count, 3, 32, 32), float64."""
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def freeze(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all networks compute with frozen deviations, attention weights and norms, and activations as frozen factors.

    The functions of PyTorch are replaced by ones of the same values, in which these parts have no gradient.
    """
    softmax, sigmoid, norm, gelu = torch.softmax, torch.sigmoid, Tensor.norm, F.gelu

    def layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + eps).sqrt().detach()
        return centred / deviation * (1 if weight is None else weight) + (0 if bias is None else bias)

    def attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **options: Any) -> Tensor:
        return softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1).detach() @ v

    monkeypatch.setattr(F, "layer_norm", layer_norm)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(F, "gelu", lambda x, **options: x * (gelu(x, **options) / x).detach())
    monkeypatch.setattr(F, "softmax", lambda x, dim, **options: softmax(x, dim).detach())
    monkeypatch.setattr(Tensor, "softmax", lambda x, dim: softmax(x, dim).detach())
    monkeypatch.setattr(torch, "sigmoid", lambda x: sigmoid(x).detach())
    monkeypatch.setattr(Tensor, "norm", lambda x, **options: norm(x, **options).detach())
    monkeypatch.setattr(F, "normalize", lambda x, dim: x / torch.linalg.vector_norm(x, dim=dim, keepdim=True).detach())
