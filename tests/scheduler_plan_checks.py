"""What holds for every plan."""

from builders_scheduler import BE, LS

from scheduler import SchedulerSettings, StepPlan


def check_shape(
    plan: StepPlan, settings: SchedulerSettings, latency_sensitive_only: bool, num_ready: int
) -> None:
    """Fail unless a plan keeps to its budgets and its order; `num_ready` lane rows could join."""
    num_ls, num_be = (
        sum(rows.num_tokens for rows in plan.rows if rows.service_class is service_class)
        for service_class in (LS, BE)
    )
    assert plan.num_tokens == num_ls + num_be <= settings.max_step_tokens
    assert plan.rows or plan.lane_entries or (num_ready and plan.max_lane_rows)
    assert not (num_ls and num_be > settings.best_effort_tokens_beside_ls)
    assert not (latency_sensitive_only and (num_be or plan.max_lane_rows))
    if settings.piggyback is None:
        assert not {rows.request_id for rows in plan.rows} & {*plan.preempted_ids}
    elif not latency_sensitive_only:
        limits = settings.piggyback
        most = limits.max_lane_rows_beside_ls if num_ls else limits.max_lane_rows
        assert plan.max_lane_rows == most
    order = [(rows.service_class is BE, rows.num_tokens > 1) for rows in plan.rows]
    assert order == sorted(order)
    assert len({rows.request_id for rows in plan.rows}) == len(plan.rows)
