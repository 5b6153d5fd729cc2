"""Train a network and the pair classifier in a plain PyTorch loop, then search for identities it has never seen.

    python train.py photos      # a folder of photos/<identity>/<image>; without it, emoji drawn by two vendors

Copy this file and change what you like: network, loss and augmentation are ordinary modules.
"""

import argparse

import kornia.augmentation as augmentations
import torch
from dissim_retrieval import DissimilarityHead, DissimilarityIndex, HingeLoss, evaluate
from dissim_retrieval.data import load_images
from dissim_retrieval.embedding import embed_images
from dissim_retrieval.models import build_backbone
from dissim_retrieval.train import IdentityBatches
from torch import nn


def main() -> None:
    options = parse_options()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    # uint8 images [B, 3, H, W], labels int64 [B]; half of the identities are held out.
    images = load_images("folder" if options.photos else "emoji", size=options.size, root=options.photos)
    train, test = images.split_labels(0.5, seed=0)
    batches = IdentityBatches(train.labels, identities=options.identities, views=2, steps=options.steps)

    # Any module from images [B, 3, H, W] in [0, 1] to embeddings [B, D] can be the backbone.
    backbone = build_backbone(options.backbone, options.dim).to(device)
    head = DissimilarityHead(options.dim, scale=4.0).to(device)  # score = w.|q - r| + b, larger means "same"
    loss = HingeLoss(head, num_hard_negatives=2)
    augment = nn.Sequential(augmentations.RandomHorizontalFlip(), augmentations.RandomErasing(p=0.25))

    optimizer = torch.optim.AdamW(
        [
            {"params": backbone.parameters(), "lr": 1e-3},
            {"params": head.parameters(), "lr": 2e-2, "weight_decay": 0.0},
        ]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)

    backbone.train()
    for step, (rows, pixels) in enumerate(zip(batches, train.batches(batches), strict=True)):
        pixels = augment(pixels.to(device).float() / 255)
        value = loss(backbone(pixels), train.labels[rows].to(device))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()  # a hook of the head keeps the norm of its weights
        schedule.step()
        if step % 10 == 0:
            print(f"step {step}: loss {value.item():.3f}")

    embeddings = embed_images(backbone, test)
    head = head.cpu()
    metrics = evaluate("pair classifier", embeddings, head, test).metrics
    print(f"{len(test)} images of new identities: mAP {metrics['mAP_mean']:.3f}, recall@1 {metrics['recall@1']:.3f}")

    index = DissimilarityIndex(head)
    index.add(embeddings, torch.arange(len(test)))
    found = index.search(embeddings[:1], k=3)
    for row, score in zip(found.ids[0].tolist(), found.scores[0].tolist(), strict=True):
        print(f"{score:7.3f}  {test.label_names[test.labels[row]]}, {test.ids[row]}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="?", help="folder of photos/<identity>/<image>")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    defaults = {"size": 64, "dim": 256, "identities": 32, "steps": 150}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args()


if __name__ == "__main__":
    main()
