"""What piggybacking may take, from settings to the scheduler's terms."""

from omniserve.settings import PiggybackSettings
from scheduler import PiggybackLimits


def piggyback_limits(settings: PiggybackSettings, num_device_blocks: int) -> PiggybackLimits:
    """What the scheduler is told."""
    share = settings.max_device_kv_share
    return PiggybackLimits(
        num_lanes=settings.max_offloaded_requests,
        max_lane_rows=settings.max_lane_rows,
        max_lane_rows_beside_ls=settings.max_lane_rows_beside_ls,
        max_resident_decodes=settings.max_resident_decodes,
        max_resident_blocks=None if share >= 1.0 else int(share * num_device_blocks),
    )
