"""Learn a pair score on stored embeddings (CLIP, DINOv2, anything), save it, and search with it.

python python/examples/frozen_features.py FEATURES.npz [HEAD.safetensors]

FEATURES.npz has arrays "embeddings" [N, D] and "labels" [N], as numpy.savez(path, embeddings=..., labels=...) writes.
"""

import sys

import torch
from dissim_retrieval import DissimilarityIndex, ProjectedHead, fit_head, read_features


def main(features: str, output: str = "head.safetensors") -> None:
    embeddings, labels = read_features(features)
    fitted = fit_head(embeddings, labels, progress=sys.stderr.isatty())
    print(fitted.check)  # the mAP on identities that were not fitted, against cosine's and whitening's
    fitted.save(output)

    scorer = ProjectedHead.load(output)
    gallery = DissimilarityIndex(scorer.head)
    gallery.add(scorer.project(embeddings), torch.arange(len(embeddings)))
    found = gallery.search(scorer.project(embeddings[:1]), k=5)
    for score, row in zip(found.scores[0].tolist(), found.ids[0].tolist(), strict=True):
        print(f"{score:.3f}  row {row}  {labels[row]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
