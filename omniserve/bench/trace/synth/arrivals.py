"""Arrival times: a Gamma renewal process whose clock runs as fast as the envelope says.

Gamma gaps alone reach the variation of real gaps but not their burstiness over seconds to minutes;
an envelope of rates a minute brings that in.
"""

import math

import numpy as np
import numpy.typing as npt

from omniserve.bench.trace.synth.envelopes import AllAtOnce, Envelope

_DIGITS = 6
"""Of a second: what differs behind them between machines must not change a trace."""


def arrival_times_s(
    envelope: Envelope,
    gap_cv: float,
    num_requests: int,
    duration_s: float,
    rng: np.random.Generator,
) -> npt.NDArray[np.float64]:
    """Exactly `num_requests` times in [0, duration_s), ascending.

    `gap_cv` is the standard deviation over the mean of the gaps between arrivals while the rate
    stays; the shape of the Gamma distribution is 1 / gap_cv².
    """
    if isinstance(envelope, AllAtOnce):
        return np.zeros(num_requests)
    num_windows = math.ceil(duration_s / envelope.window_s)
    rates = envelope.rates(num_windows, rng)
    edges_s = np.minimum(np.arange(num_windows + 1) * envelope.window_s, duration_s)
    # Requests that are expected up to each edge, in units of all.
    expected = np.concatenate(([0.0], np.cumsum(rates * np.diff(edges_s))))
    expected /= expected[-1]
    # One gap more than arrivals: the last one ends where the trace ends.
    gaps = rng.gamma(1 / gap_cv**2, size=num_requests + 1)
    elapsed = np.cumsum(gaps)
    times_s = np.interp(elapsed[:-1] / elapsed[-1], expected, edges_s)
    last_s = math.floor(duration_s * 10**_DIGITS - 1) / 10**_DIGITS
    rounded: npt.NDArray[np.float64] = np.minimum(np.round(times_s, _DIGITS), max(0.0, last_s))
    return rounded
