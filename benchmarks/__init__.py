"""Measurements of the hot paths, each beside a reference that was measured in the same run. ``python -m benchmarks`` (``make bench``)."""
