"""Image retrieval and re-identification in the dissimilarity space: train, search, evaluate, compare."""
