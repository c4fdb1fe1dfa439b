"""The benchmark for GPUs, on the cases and peers of `fastunlearn.bench`."""
