"""Grafana dashboards, built from the metric table: an overview of the ring, and one dashboard for each part."""

from typing import Any

from streams.metrics import BY_NAME, TABLE, Metric

SCHEMA_VERSION = 41
DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
PARTS = ("streams", "reward", "learner", "actor")
OVERVIEW = (
    "tidemill_episodes_captured_total",
    "tidemill_feedback_received_total",
    "tidemill_thumb_to_label_seconds",
    "tidemill_label_to_reward_model_seconds",
    "tidemill_reward_accuracy_ratio",
    "tidemill_reward_ece_ratio",
    "tidemill_learner_reward_mean",
    "tidemill_learner_kl_nats",
    "tidemill_serving_version",
    "tidemill_adapters_refused_total",
    "tidemill_consumer_lag_records",
    "tidemill_dead_letters_total",
)
"""What an operator looks at first, in the order of the ring."""
MOVING = ("tidemill_promotion", "tidemill_canary", "tidemill_serving", "tidemill_adapters", "tidemill_adapter_load")
"""Names of what tells how adapters move, from being published to answering people."""

MOVES = {
    "name": "Promotions",
    "datasource": DATA_SOURCE,
    "enable": True,
    "iconColor": "purple",
    "expr": "sum by (move) (increase(tidemill_promotions_total[1m])) > 0",
    "titleFormat": "{{move}}",
    "step": "60s",
}
"""Marks on every dashboard where the promoter moved an adapter."""


def dashboards() -> dict[str, dict[str, Any]]:
    """Every dashboard by its uid, as Grafana's JSON model."""
    built = {"tidemill-ring": dashboard("tidemill-ring", "Tidemill: the ring", [BY_NAME[name] for name in OVERVIEW])}
    for part in PARTS:
        uid = f"tidemill-{part}"
        built[uid] = dashboard(uid, f"Tidemill: {part}", [metric for metric in TABLE if metric.part == part])
    built["tidemill-promotions"] = dashboard(
        "tidemill-promotions", "Tidemill: promotions", [metric for metric in TABLE if metric.name.startswith(MOVING)]
    )
    return built


def dashboard(uid: str, title: str, metrics: list[Metric]) -> dict[str, Any]:
    """One dashboard: a panel a metric, three in a row."""
    return {
        "uid": uid,
        "title": title,
        "tags": ["tidemill"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}]},
        "annotations": {"list": [MOVES]},
        "panels": [panel(metric, number) for number, metric in enumerate(metrics)],
    }


def panel(metric: Metric, number: int) -> dict[str, Any]:
    """One metric as a time series, with its sentence as the description."""
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title(metric),
        "description": metric.sentence,
        "datasource": DATA_SOURCE,
        "gridPos": {"x": 8 * (number % 3), "y": 8 * (number // 3), "w": 8, "h": 8},
        "fieldConfig": {"defaults": {"unit": unit(metric), "min": 0, **({"max": 1} if metric.name.endswith("_ratio") else {})}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": DATA_SOURCE, "expr": expression, "legendFormat": legend}
            for i, (expression, legend) in enumerate(expressions(metric))
        ],
    }


def expressions(metric: Metric) -> list[tuple[str, str]]:
    """PromQL with its legend: a counter by its rate, a histogram by its quantiles, a gauge as it is."""
    by, legend = ", ".join(metric.labels), " ".join(f"{{{{{label}}}}}" for label in metric.labels)
    if metric.kind == "counter":
        return [
            (
                f"sum by ({by}) (rate({metric.name}[$__rate_interval]))" if by else f"sum(rate({metric.name}[$__rate_interval]))",
                legend or "per second",
            )
        ]
    if metric.kind == "gauge":
        return [(metric.name, legend or "{{instance}}")]
    group = ", ".join(("le", *metric.labels))
    return [
        (
            f"histogram_quantile({quantile}, sum by ({group}) (rate({metric.name}_bucket[$__rate_interval])))",
            f"p{int(quantile * 100)} {legend}".strip(),
        )
        for quantile in (0.5, 0.99)
    ]


def title(metric: Metric) -> str:
    """The metric's name as a person would say it."""
    words = metric.name.removeprefix("tidemill_")
    for suffix in ("_total", "_seconds", "_ratio", "_nats", "_records"):
        words = words.removesuffix(suffix)
    return words.replace("_", " ").capitalize() + (" per second" if metric.kind == "counter" else "")


def unit(metric: Metric) -> str:
    """Grafana's name of the unit."""
    if metric.kind == "counter":
        return "cps"
    if metric.name.endswith("_seconds"):
        return "s"
    return "percentunit" if metric.name.endswith("_ratio") else "short"
