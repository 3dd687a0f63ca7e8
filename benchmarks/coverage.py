"""How much of the work of other people's models runs sparse after `spfde.sparsify(model)`, layer kind by layer kind.

    build/models/bin/python benchmarks/coverage.py [--only gpt2 swin] [--json FILE] [--before FILE]

Definitions at their published sizes with random weights, one forward pass each at batch 1. Work is what torch's own
FlopCounterMode counts of the dense model, and spfde of an LSTM, which that does not; products of two activations
(attention scores) are told apart from products by a weight. --before: the record of another version, for its column.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import spfde
from spfde._modules import run

ACTIVATIONS = ("bmm", "baddbmm", "scaled_dot_product", "attention")  # ops of two activations, by their names


@dataclass(frozen=True)
class Model:
    """A definition: how it is made, its input, and what its owner must exclude, as spfde refuses it by name."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    exclude: tuple[str, ...] = ()
    distribution: str = "uniform"


@dataclass(frozen=True)
class Coverage:
    """Of one model: the share of the FLOPs by weights that ran sparse, that of all FLOPs, and what stayed dense.

    products: FLOPs of products by weights. all: with those of two activations. dense: share by reason, the largest.
    """

    products: int
    all: int
    sparse: float
    sparse_of_all: float
    layers: int
    dense: dict[str, float]
    refused: str = ""


def measure(model: Model) -> Coverage:
    """Sparsifies and runs it once, in evaluation mode."""
    torch.manual_seed(0)
    net, inputs = model.make().eval(), model.inputs()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # what it computes is not counted
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(net, inputs)
    torch.backends.mha.set_fastpath_enabled(fast)
    counts = counter.get_flop_counts()["Global"]
    whole = sum(counts.values())
    products = whole - sum(n for op, n in counts.items() if any(part in str(op) for part in ACTIVATIONS))
    try:
        net = spfde.sparsify(net, 0.9, exclude=model.exclude, distribution=model.distribution)
    except ValueError as error:
        return Coverage(products, whole, 0.0, 0.0, 0, {}, str(error).splitlines()[0])
    summary = spfde.summary(net, inputs)
    uncounted = sum(2 * row.multiply_adds for row in summary.rows if row.kind == "LSTM")
    products, whole = products + uncounted, whole + uncounted
    sparse = sum(2 * row.multiply_adds for row in summary.rows if row.runs_sparse)
    dense: Counter[str] = Counter()
    for row in summary.rows:
        if not row.runs_sparse:
            dense[f"{row.kind}: {row.reason}"] += 2 * row.multiply_adds
    named = {reason: work / products for reason, work in dense.most_common(4) if work}
    return Coverage(products, whole, sparse / products, sparse / whole, sum(r.converted for r in summary.rows), named)


def torchvision_without_operators() -> None:
    """torchvision's operators are built for one torch each; no model needs them, but its import needs their names."""
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def images(size: int = 224) -> Callable[[], Tensor]:
    return lambda: torch.randn(1, 3, size, size)


def tokens(length: int = 128, vocabulary: int = 1000, **more: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "input_ids": torch.randint(vocabulary, (1, length)),
        **{name: make() for name, make in more.items()},
    }


def timm(name: str, size: int = 224, exclude: tuple[str, ...] = (), **options: Any) -> tuple[str, Model]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, **options)

    return f"timm: {name}", Model(make, images(size), exclude)


def torchvision(name: str, size: int = 224, **options: Any) -> tuple[str, Model]:
    def make() -> nn.Module:
        import torchvision

        return torchvision.models.get_model(name, weights=None, **options)

    return f"torchvision: {name}", Model(make, images(size))


def hub(kind: str, config: str, inputs: Callable[[], Any], exclude: tuple[str, ...] = (), **options: Any):
    """A model of transformers by its configuration, whose defaults are the published base size."""

    def make() -> nn.Module:
        import transformers

        return getattr(transformers, kind)(getattr(transformers, config)(**options))

    return f"transformers: {kind}{' medium' if options.get('n_embd') == 1024 else ''}", Model(make, inputs, exclude)


def open_clip() -> nn.Module:
    import open_clip

    return open_clip.create_model("ViT-B-32", pretrained=None).visual


class GCN(nn.Module):
    """Kipf and Welling's network on Cora's sizes."""

    def __init__(self) -> None:
        super().__init__()
        from torch_geometric.nn import GCNConv

        self.layers = nn.ModuleList([GCNConv(1433, 256), GCNConv(256, 256), GCNConv(256, 256), GCNConv(256, 7)])

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x, edges))
        return self.layers[-1](x, edges)


class Residual1d(nn.Module):
    """A block of a temporal convolutional network (Bai et al. 2018): causal, dilated, residual."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.pad = nn.ConstantPad1d((2 * dilation, 0), 0.0)
        self.first = nn.Conv1d(channels, channels, 3, dilation=dilation)
        self.second = nn.Conv1d(channels, channels, 3, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + torch.relu(self.second(self.pad(torch.relu(self.first(self.pad(x)))))))


def tcn() -> nn.Module:
    blocks = [Residual1d(256, 2**i) for i in range(6)]
    return nn.Sequential(nn.Conv1d(64, 256, 1), *blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(256, 10))


def dcgan() -> nn.Module:
    """The generator of Radford et al. 2016, as PyTorch's tutorial has it."""

    def up(inputs: int, outputs: int, *window: int) -> list[nn.Module]:
        return [nn.ConvTranspose2d(inputs, outputs, *window, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True)]

    return nn.Sequential(
        *up(100, 512, 4, 1, 0), *up(512, 256, 4, 2, 1), *up(256, 128, 4, 2, 1), *up(128, 64, 4, 2, 1),
        nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False), nn.Tanh(),
    )  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.embed, self.recurrent = nn.Embedding(1000, 256), kind(256, 512, 2, batch_first=True)
        self.hidden, self.head = nn.Linear(512, 512), nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.recurrent(self.embed(x))[0])))


def video() -> nn.Module:
    import torchvision

    return torchvision.models.video.r3d_18(weights=None)


MODELS: dict[str, Model] = dict(
    [
        hub("GPT2Model", "GPT2Config", tokens()),
        hub("GPT2LMHeadModel", "GPT2Config", tokens()),
        hub("GPT2LMHeadModel", "GPT2Config", tokens(), n_embd=1024, n_layer=24, n_head=16),
        hub("BertForMaskedLM", "BertConfig", tokens()),
        hub("RobertaModel", "RobertaConfig", tokens()),
        hub("DistilBertModel", "DistilBertConfig", tokens()),
        hub("AlbertModel", "AlbertConfig", tokens(), num_attention_heads=64),
        hub("DebertaV2Model", "DebertaV2Config", tokens(), hidden_size=768, num_hidden_layers=6),
        hub("T5Model", "T5Config", tokens(decoder_input_ids=lambda: torch.randint(1000, (1, 64)))),
        hub("BartModel", "BartConfig", tokens(), encoder_layers=4, decoder_layers=4),
        hub("OPTModel", "OPTConfig", tokens()),
        hub("LlamaModel", "LlamaConfig", tokens(), hidden_size=768, intermediate_size=2048, num_hidden_layers=6,
            num_attention_heads=12, vocab_size=1000),
        hub("GemmaModel", "GemmaConfig", tokens(), hidden_size=512, intermediate_size=2048, num_hidden_layers=4,
            num_attention_heads=8, num_key_value_heads=8, head_dim=64, vocab_size=1000, pad_token_id=0),
        hub("MixtralModel", "MixtralConfig", tokens(), hidden_size=512, intermediate_size=1024, num_hidden_layers=4,
            num_attention_heads=8, num_key_value_heads=4, vocab_size=1000, experts_implementation="eager"),
        hub("MambaModel", "MambaConfig", tokens(), hidden_size=512, num_hidden_layers=6, vocab_size=1000),
        hub("ViTModel", "ViTConfig", lambda: {"pixel_values": torch.randn(1, 3, 224, 224)}),
        hub("Dinov2Model", "Dinov2Config", lambda: {"pixel_values": torch.randn(1, 3, 224, 224)}),
        hub("BeitModel", "BeitConfig", lambda: {"pixel_values": torch.randn(1, 3, 224, 224)}),
        hub("CLIPVisionModel", "CLIPVisionConfig", lambda: {"pixel_values": torch.randn(1, 3, 224, 224)}),
        hub("WhisperModel", "WhisperConfig", lambda: {
            "input_features": torch.randn(1, 80, 3000), "decoder_input_ids": torch.randint(1000, (1, 32)),
        }),
        hub("Wav2Vec2Model", "Wav2Vec2Config", lambda: {"input_values": torch.randn(1, 16000)}),
        hub("SegformerModel", "SegformerConfig", lambda: {"pixel_values": torch.randn(1, 3, 224, 224)}),
        ("open_clip: ViT-B-32", Model(open_clip, images())),
        ("torch: Transformer", Model(nn.Transformer, lambda: (torch.randn(32, 1, 512), torch.randn(32, 1, 512)))),
        ("torch: TransformerEncoder", Model(
            lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(512, 8, 2048, batch_first=True), 6),
            lambda: torch.randn(1, 128, 512))),
        ("torch: TCN", Model(tcn, lambda: torch.randn(1, 64, 256))),
        ("torch: DCGAN generator", Model(dcgan, lambda: torch.randn(1, 100, 1, 1))),
        ("torch: LSTM", Model(lambda: Recurrent(nn.LSTM), lambda: torch.randint(1000, (1, 64)))),
        ("torch: GRU", Model(lambda: Recurrent(nn.GRU), lambda: torch.randint(1000, (1, 64)))),
        # Three quarters of its work is the first layer, which "uniform" leaves dense.
        ("PyG: GCN", Model(GCN, lambda: (torch.randn(2708, 1433), torch.randint(2708, (2, 10556))), (), "erk")),
        ("torchvision: r3d_18", Model(video, lambda: torch.randn(1, 3, 8, 112, 112))),
        torchvision("swin_t"), torchvision("swin_v2_t", 256), torchvision("vit_b_32"), torchvision("resnet50"),
        torchvision("mobilenet_v3_large"), torchvision("convnext_tiny"), torchvision("densenet121"),
        timm("swin_tiny_patch4_window7_224"), timm("swinv2_tiny_window8_256", 256), timm("beit_base_patch16_224"),
        timm("eva02_tiny_patch14_224"), timm("vit_small_patch16_224"), timm("deit_tiny_patch16_224"),
        timm("resnetv2_50x1_bit"), timm("nf_resnet50"), timm("efficientnet_b0"), timm("regnety_016"),
        timm("mixer_s32_224"), timm("convnext_tiny"), timm("levit_128s"),
        timm("maxvit_tiny_tf_224", 224, ("stages.*.blocks.0.conv.conv2_kxk", "stem.*")),
        timm("mobilenetv3_large_100"),
    ]
)  # fmt: skip


def table(found: dict[str, Coverage], before: dict[str, Any]) -> str:
    """Markdown: share of the FLOPs by weights that run sparse, before and now, of all FLOPs, and what stays dense."""
    lines = [
        "| model | before | now | of all FLOPs | what stays dense, share of the FLOPs by weights |",
        "|---|---|---|---|---|",
    ]
    for name, row in found.items():
        old = before.get(name)
        was = "" if old is None else "refused" if old["refused"] else f"{old['sparse']:.0%}"
        rest = "; ".join(f"{reason} ({share:.1%})" for reason, share in row.dense.items() if share >= 0.005)
        unknown = 0.0 if row.refused else 1 - row.sparse - sum(row.dense.values())
        if unknown >= 0.02:  # products by bare Parameters, and layers of small shares
            rest = "; ".join(part for part in (rest, f"bare Parameters and others ({unknown:.1%})") if part)
        now = "refused" if row.refused else f"{row.sparse:.0%}"
        lines.append(f"| {name} | {was} | {now} | {row.sparse_of_all:.0%} | {row.refused.partition(' (')[0] or rest} |")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="models whose name contains one of these")
    parser.add_argument("--json", type=Path, help="where the record goes")
    parser.add_argument("--before", type=Path, help="the record of another version")
    options = parser.parse_args()
    chosen = {n: m for n, m in MODELS.items() if not options.only or any(part in n for part in options.only)}
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        torchvision_without_operators()
    record = {"spfde": spfde.__version__, "torch": torch.__version__, "models": {}}
    if options.json and options.json.exists():
        record = json.loads(options.json.read_text())  # goes on
    for name, model in chosen.items():
        if name not in record["models"]:
            try:
                found = measure(model)
            except Exception as error:  # each library has its own
                found = Coverage(0, 0, 0.0, 0.0, 0, {}, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            record["models"][name] = asdict(found)
            print(f"{name}: {record['models'][name]['sparse']:.1%}", file=sys.stderr)
        if options.json:
            options.json.write_text(json.dumps(record, indent=1) + "\n")
    before = json.loads(options.before.read_text())["models"] if options.before else {}
    found = {name: Coverage(**row) for name, row in record["models"].items() if name in chosen}
    print(table(found, before))


if __name__ == "__main__":
    main()
