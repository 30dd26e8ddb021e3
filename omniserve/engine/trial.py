"""A model's first tokens, which nobody asked for: what is made on first use is made for them."""

import time

from omniserve.engine.model_runtime import ModelRuntime
from omniserve.requests import EngineRequest, RequestOutput, SamplingParams
from omniserve.settings import ModelInfo

_PATIENCE_S = 60.0
"""Then the model is served as it is: best-effort work may have to wait for longer."""


def warm_up_request(info: ModelInfo, request_id: str = "warm-up") -> EngineRequest | None:
    """Two tokens after a short prompt, as best-effort work; None where the model holds too few."""
    prompt = (0,) * min(4, info.max_model_len - 2)
    sampling = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=2)
    if not prompt:
        return None
    return EngineRequest(request_id, info.name, prompt, sampling, "best_effort", "warm-up")


class Trial:
    """Of a model that has joined others: it runs in steps like any best-effort request."""

    def __init__(self, runtime: ModelRuntime) -> None:
        self.runtime = runtime
        self.error: str | None = None
        """Why no token came."""
        self.is_over = False
        request = warm_up_request(runtime.info, f"warm-up/{runtime.info.name}")
        self._request_id = "" if request is None else request.request_id
        self._end_s = time.monotonic() + _PATIENCE_S
        if request is None:
            self.is_over = True
        else:
            runtime.add(request)

    def look(self) -> None:
        """Gives up where it takes too long."""
        if time.monotonic() > self._end_s:
            self.end()

    def end(self) -> None:
        """No token is waited for any more."""
        self.runtime.abort(self._request_id)
        self.is_over = True

    def take_own(self, outputs: list[RequestOutput]) -> list[RequestOutput]:
        """Returns those of others."""
        for output in outputs:
            if output.request_id == self._request_id and output.finish_reason is not None:
                self.is_over = True
                if output.error is not None:
                    self.error = f"model {self.runtime.info.name!r}: {output.error}"
        return [output for output in outputs if output.request_id != self._request_id]
