"""How long a sequence may get."""

from scheduler.request import Request
from scheduler.settings import SchedulerSettings


def find_max_total_tokens(request: Request, settings: SchedulerSettings) -> int:
    """Length at which a new request ends. ValueError if it could never run to there."""
    num_prompt = request.num_prompt_tokens
    if not 0 < num_prompt < settings.max_model_len:
        most = settings.max_model_len - 1
        raise ValueError(f"prompt has {num_prompt} tokens, allowed are 1 to {most}")
    if request.max_tokens < 1:
        raise ValueError(f"max_tokens is {request.max_tokens}, it must be at least 1")
    max_total = min(num_prompt + request.max_tokens, settings.max_model_len)
    # The last token of a sequence is never computed, so it needs no place.
    num_places = settings.num_blocks * settings.block_size
    if max_total - 1 > num_places:
        raise ValueError(
            f"prompt and max_tokens need {max_total - 1} KV places, the pool has {num_places}"
        )
    return max_total
