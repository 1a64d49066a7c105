"""Metrics in the text format that Prometheus scrapes.

Owns the format, by way of prometheus-client. It must not know what is measured.
"""

from prometheus_client import CollectorRegistry, generate_latest


def prometheus_text(registry: CollectorRegistry) -> str:
    """Return all metrics of *registry* in Prometheus' text format, version 0.0.4."""
    return generate_latest(registry).decode()
