"""Tables 1 and 2 of the paper (arXiv 2512.00904), shown beside our own numbers and never mixed with them."""

PAPER_ENCODER = "CLIP ViT-B/32"

_METHODS = ("kmeans", "tac", "paper", "zero-shot")
_ROWS = {
    "STL-10": ((91.7, 94.3, 89.1), (92.3, 94.5, 89.5), (95.5, 98.2, 96.7), (93.9, 97.1, 93.7)),
    "CIFAR-10": ((70.3, 74.2, 61.6), (80.8, 90.1, 79.8), (81.7, 90.9, 80.5), (80.7, 90.0, 79.3)),
    "CIFAR-20": ((49.9, 45.5, 28.3), (60.7, 55.8, 42.7), (62.8, 60.9, 45.9), (55.3, 58.3, 39.8)),
    "ImageNet-10": ((96.9, 98.2, 96.1), (97.5, 98.6, 97.0), (98.1, 98.8, 97.4), (95.8, 97.6, 94.9)),
    "ImageNet-Dogs": ((39.8, 38.1, 20.1), (75.1, 75.1, 63.6), (77.9, 77.5, 66.3), (73.5, 72.8, 58.2)),
    "DTD": ((57.3, 42.6, 27.4), (60.1, 45.9, 29.0), (62.1, 46.7, 31.9), (56.5, 43.1, 26.9)),
    "UCF-101": ((79.5, 58.2, 47.6), (81.6, 61.3, 52.4), (82.8, 63.5, 54.9), (79.9, 63.4, 50.2)),
    "ImageNet-1K": ((72.3, 38.9, 27.1), (77.8, 48.9, 36.4), (79.3, 53.1, 39.3), (81.0, 63.6, 45.4)),
}

PAPER: dict[str, dict[str, dict[str, float]]] = {
    dataset: {
        method: dict(zip(("nmi", "acc", "ari"), scores, strict=True))
        for method, scores in zip(_METHODS, row, strict=True)
    }
    for dataset, row in _ROWS.items()
}
"""data set ↦ method ↦ NMI, ACC and ARI in percent."""
