"""Scenes of control: OmniServe beside itself without control, under loads that move."""
