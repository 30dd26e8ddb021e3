"""Traces, load, reports and comparisons: how OmniServe is measured, and measured against others."""
