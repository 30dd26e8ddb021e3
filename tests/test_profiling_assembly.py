"""What is made of a measurement that others disturbed."""

from omniserve.profiling.assembly import at_most
from scheduler.step_time import StepCosts

BESIDE = StepCosts(1e-3, ((1, 2e-3), (64, 9e-3), (128, 20e-3)), prefill_pair_s=4e-8)
DISTURBED = StepCosts(5e-4, ((1, 1e-3), (64, 30e-3), (100, 31e-3)), prefill_pair_s=4e-6)


def test_nothing_takes_longer_with_all_cores_than_with_some() -> None:
    costs = at_most(DISTURBED, BESIDE)
    assert (costs.overhead_s, costs.prefill_pair_s) == (5e-4, 4e-8)
    assert costs.dense_ladder == ((1, 1e-3), (64, 9e-3), (100, BESIDE.dense_s(100)))


def test_what_is_plausible_stays() -> None:
    assert at_most(BESIDE, BESIDE) == BESIDE
