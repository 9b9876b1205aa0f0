"""Plumbing that knows nothing of clustering: files, names, checksums, caches, devices, process groups, progress."""
