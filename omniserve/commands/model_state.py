"""The state of a model in a few words, the same wherever people look."""

from omniserve.v1 import omniserve_pb2 as pb


def model_state(model: pb.ModelStatus) -> str:
    """`serving, pinned`, or `loading: reading 40%`."""
    words = model.state
    if model.HasField("progress"):
        words += f": {progress_words(model.progress)}"
    return f"{words}, pinned" if model.pinned else words


def trouble_words(model: pb.ModelStatus) -> str:
    """Of a model with an error."""
    what = "woken" if model.state == "asleep" else "loaded"
    return f"model {model.name} could not be {what}: {model.error}"


def progress_words(progress: pb.ModelProgress) -> str:
    phase = progress.phase.replace("_", " ")
    if progress.total_bytes <= 0:
        return phase
    return f"{phase} {min(1.0, progress.done_bytes / progress.total_bytes):.0%}"
