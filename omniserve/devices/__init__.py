"""Devices: the only place that knows an accelerator, its streams and its attention kernels."""
