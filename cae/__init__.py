"""CAE: training-free image clustering with nouns and captions (arXiv 2512.00904)."""
