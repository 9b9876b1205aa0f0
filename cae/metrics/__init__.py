"""cae.metrics.torchmetrics."""
