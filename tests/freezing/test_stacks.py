"""Blocks of models whose layers lie deep inside: any head, several outputs, two towers, encoder and decoder."""

import pytest
import torch
from freezing.models import Basic
from torch import nn

from spfde.freezing import Progressive, blocks


def layer(**options) -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, **options)


def names(model: nn.Module, *example: torch.Tensor) -> list[str]:
    return [block.name for block in blocks(model, example)]


class Stack(nn.Module):
    """Layers, with something in front and a norm behind."""

    def __init__(self, embed: nn.Module, depth: int = 3) -> None:
        super().__init__()
        self.embed, self.norm = embed, nn.LayerNorm(8)
        self.inner = nn.ModuleDict({"layers": nn.ModuleList(layer() for _ in range(depth))})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for each in self.inner["layers"]:
            x = each(x)
        return self.norm(x)


class MLMHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.norm, self.decoder = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.norm(self.dense(x).relu()))


class Net(nn.Module):
    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))


LAYERS = [f"backbone.inner.layers.{i}" for i in range(3)]


@pytest.mark.parametrize(
    "head",
    [
        lambda: nn.Linear(8, 11),
        lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 11)),
        MLMHead,
    ],
)
@pytest.mark.parametrize("chain", [False, True])
def test_a_backbone_in_front_of_any_head_is_looked_into(head, chain):
    ids = torch.randint(11, (2, 5))
    backbone, top = Stack(nn.Embedding(11, 8)), head()
    model = nn.Sequential(backbone, top) if chain else Net(backbone, top)
    found = blocks(model, ids)
    assert [b.name for b in found] == [name.replace("backbone", "0") if chain else name for name in LAYERS]
    inside = {m for block in found for m in block.members}
    assert not inside & set(top.modules()) and backbone.embed in found[0].members


def test_a_language_model_with_a_head_of_two_layers_and_a_tied_table():
    model = Net(Stack(nn.Embedding(11, 8)), MLMHead())
    model.head.decoder.weight = model.backbone.embed.weight
    found = blocks(model, torch.randint(11, (2, 5)))
    assert [b.name for b in found] == LAYERS
    assert not any(p is model.head.decoder.weight for block in found for p in block.trainable)


def test_two_outputs_of_a_segmentation_network():
    class Aspp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sum(conv(x) for conv in self.convs)

    class DeepLab(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.ModuleDict(
                {"conv1": nn.Conv2d(3, 4, 3), "layer1": nn.Sequential(Basic(4, 4), Basic(4, 4)), "layer2": Basic(4, 4)}
            )
            self.classifier = nn.Sequential(Aspp(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
            self.aux = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            for each in self.backbone.values():
                x = each(x)
            return {"out": self.classifier(x), "aux": self.aux(x)}

    assert names(DeepLab(), torch.randn(2, 3, 8, 8)) == ["backbone.layer1.0", "backbone.layer1.1", "backbone.layer2"]


def test_two_towers():
    class Clip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual, self.text = Stack(nn.Linear(3, 8)), Stack(nn.Embedding(11, 8))
            self.visual_projection, self.text_projection = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, images: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            a, b = self.visual(images)[:, 0], self.text(ids)[:, 0]
            return self.visual_projection(a) @ self.text_projection(b).T

    found = blocks(model := Clip(), (torch.randn(2, 5, 3), torch.randint(11, (2, 5))))
    assert [b.name for b in found] == [f"{tower}.inner.layers.{i}" for tower in ("visual", "text") for i in range(3)]
    assert model.text.embed in found[3].members and model.visual.embed in found[0].members


def test_torch_s_encoder_and_decoder():
    model = nn.Transformer(8, 2, 2, 2, 16, 0.0, batch_first=True)
    x = torch.randn(2, 5, 8)
    expected = [f"{half}.layers.{i}" for half in ("encoder", "decoder") for i in range(2)]
    assert names(model, x, x) == expected
    plan = Progressive(model, blocks(model, (x, x)), epochs=10, interval=1, flops_reduction=0.1)
    plan.begin_epoch(9)
    assert all(p.requires_grad for p in model.decoder.layers[1].parameters())


def test_experts_side_by_side_are_no_stack():
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + sum(expert(x) for expert in self.experts)

    model = nn.Sequential(Experts(), Experts(), Experts(), nn.Linear(8, 2))
    assert names(model, torch.randn(2, 8)) == ["0", "1", "2"]
