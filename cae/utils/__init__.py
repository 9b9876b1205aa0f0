"""Plumbing that knows nothing of clustering: files, checksums, caches, devices, process groups, progress."""
