"""Runs random schedules on a fleet and judges every answer."""

from collections.abc import Sequence

from piggyback_builders import Fleet, model_name
from piggyback_references import References, Verdict
from piggyback_schedules import Schedule, ScheduleRun, make_schedule
from piggyback_troubles import HostTroubles

MAX_TIE_SHARE = 1e-3


class Trials:
    """Schedules on one fleet with the prompts of one seed."""

    def __init__(self, fleet: Fleet, prompts_seed: int) -> None:
        self.fleet = fleet
        self.verdict = Verdict()
        """Of all schedules so far."""
        self.num_piggybacked = 0
        """Tokens that came out of the lanes, as requests were told."""
        self.references = {
            arch: References(arch, path, fleet.engine, prompts_seed)
            for arch, path in fleet.checkpoints.items()
        }

    def make(self, pairs: Sequence[tuple[str, str]], seed: int) -> Schedule:
        """A schedule for models, each an architecture and a regime."""
        name = "+".join(model_name(*pair) for pair in pairs)
        models = [(model_name(*pair), self.references[pair[0]]) for pair in pairs]
        return make_schedule(name, models, seed)

    def run(
        self, pairs: Sequence[tuple[str, str]], seed: int, troubles: HostTroubles | None = None
    ) -> None:
        """Fails with the schedule's name where a token is wrong or something is left behind."""
        schedule = self.make(pairs, seed)
        verdict = self.judge(schedule, troubles)
        assert not verdict.wrong, f"{schedule.name}:\n" + "\n".join(verdict.wrong)
        self.verdict += verdict
        assert self.verdict.num_ties <= max(1, self.verdict.num_tokens * MAX_TIE_SHARE)

    def judge(self, schedule: Schedule, troubles: HostTroubles | None = None) -> Verdict:
        """Runs one schedule and compares every answer with its reference."""
        for visit in schedule.visits:
            self._of(visit.request.model).prepare(visit.request)
        run = ScheduleRun(self.fleet, schedule, troubles)
        run.run()
        self.num_piggybacked += run.num_piggybacked.total()
        verdict = Verdict()
        for visit in schedule.visits:
            name = visit.request.request_id
            got = run.results[name]
            if got.finish_reason is None and name not in run.cancelled_ids:
                verdict += Verdict(wrong=(f"{name}: never ended",))
            verdict += self._of(visit.request.model).check(visit.request, got)
        return verdict

    def _of(self, model: str) -> References:
        return self.references[model.partition(".")[0]]
