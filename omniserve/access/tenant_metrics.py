"""Tenants as Prometheus metrics, read from the ledger at every scrape.

The label `tenant` has no values but the configured names.
"""

from collections.abc import Iterable, Iterator
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from omniserve.access.quota_account import QuotaName
from omniserve.access.quotas import QuotaLedger


class TenantCollector(Collector):
    """Has no series while the configuration has no tenants."""

    def __init__(self, quotas: QuotaLedger) -> None:
        self._quotas = quotas

    def describe(self) -> Iterable[Metric]:
        """Nothing is collected to find the names out."""
        return (*_counters(), *_gauges())

    def collect(self) -> Iterator[Metric]:
        requests, refusals, tokens = counters = _counters()
        for account in self._quotas.accounts:
            tenant = account.tenant
            requests.add_metric((tenant,), account.num_requests)
            for quota in get_args(QuotaName):
                refusals.add_metric((tenant, quota), account.num_refused[quota])
            tokens.add_metric((tenant, "input"), account.num_input_tokens)
            tokens.add_metric((tenant, "output"), account.num_output_tokens)
        yield from counters
        yield from self._gauges()

    def _gauges(self) -> Iterable[Metric]:
        concurrent, queued, used = gauges = _gauges()
        for status in self._quotas.tenants_status():
            concurrent.add_metric((status.tenant,), status.num_concurrent)
            queued.add_metric((status.tenant,), status.num_queued)
            for quota, share in (
                ("input_tokens", status.input_tokens_share),
                ("output_tokens", status.output_tokens_share),
            ):
                if share is not None:
                    used.add_metric((status.tenant, quota), share)
        return gauges


def _counters() -> tuple[CounterMetricFamily, CounterMetricFamily, CounterMetricFamily]:
    return (
        CounterMetricFamily(
            "omniserve_tenant_requests",
            "Requests to generate that came with a token of the tenant, refused ones included.",
            labels=("tenant",),
        ),
        CounterMetricFamily(
            "omniserve_tenant_refusals",
            "Requests that were more than the tenant may have at the time, by quota.",
            labels=("tenant", "quota"),
        ),
        CounterMetricFamily(
            "omniserve_tenant_tokens",
            "Tokens that count against the tenant's quotas: input and output.",
            labels=("tenant", "kind"),
        ),
    )


def _gauges() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily(
            "omniserve_tenant_concurrent_requests",
            "Sequences of the tenant that are here, waiting ones included.",
            labels=("tenant",),
        ),
        GaugeMetricFamily(
            "omniserve_tenant_queued_requests",
            "Sequences of the tenant that have no token yet.",
            labels=("tenant",),
        ),
        GaugeMetricFamily(
            "omniserve_tenant_quota_used_ratio",
            "Part of a minute's worth of tokens that the tenant has used up.",
            labels=("tenant", "quota"),
        ),
    )
