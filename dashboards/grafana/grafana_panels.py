"""Grafana dashboards: an overview by question (``overview_rows.py``), and from the metric table one dashboard for each part."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dashboards.grafana.overview_rows import ROWS, QuestionPanel
from streams.core.metrics import TABLE, Metric

SCHEMA_VERSION = 41
DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
PARTS = ("streams", "reward", "learner", "actor")
CONSOLE_URL, RUNBOOKS_URL = "http://127.0.0.1:8090/", "docs/runbooks"
THIRD, HEIGHT = 8, 8
"""Width of a panel, three in a row, and its height, in Grafana's units."""


@dataclass(frozen=True)
class Derived:
    """A panel computed from several metrics, on the dashboard of its part."""

    title: str
    expression: str
    sentence: str
    legend: str
    unit: str
    part: str


DERIVED = (
    Derived(
        "Join rate",
        'sum(rate(tidemill_feedback_joined_total[$__rate_interval])) / sum(rate(tidemill_consumed_total{topic="tidemill.feedback.v1", part="join"}[$__rate_interval]))',
        "Part of the feedback that was joined to its episode.", "joined", "percentunit", "streams",
    ),
    Derived(
        "Feedback expired per second",
        'sum(rate(tidemill_dead_letters_total{reason="expired"}[$__rate_interval])) or vector(0)',
        "Feedback whose episode did not arrive within the window.", "expired", "cps", "streams",
    ),
    Derived(
        "Learner waiting",
        "rate(tidemill_learner_waiting_seconds_total[$__rate_interval])",
        "Part of the time that the learner waits for prompts or a reward model. Near 1 it is starved.", "waiting", "percentunit", "learner",
    ),
    Derived(
        "Adapter skew between replicas",
        "max by (policy) (tidemill_serving_version) - min by (policy) (tidemill_serving_version)",
        "Difference between the newest and the oldest adapter version in production on any replica.", "{{policy}}", "short", "actor",
    ),
)  # fmt: skip
MOVING = ("tidemill_promotion", "tidemill_canary", "tidemill_serving", "tidemill_adapters", "tidemill_adapter_load")
"""Beginnings of the metrics on the promotions dashboard."""

MOVES = {
    "name": "Promotions",
    "datasource": DATA_SOURCE,
    "enable": True,
    "iconColor": "purple",
    "expr": "sum by (move) (increase(tidemill_promotions_total[1m])) > 0",
    "titleFormat": "{{move}}",
    "step": "60s",
}
"""Annotations on every dashboard: promotions and roll-backs."""


def dashboards(console: str = CONSOLE_URL, runbooks: str = RUNBOOKS_URL) -> dict[str, dict[str, Any]]:
    """Every dashboard by its uid, as Grafana's JSON model. ``console`` and ``runbooks``: where the overview's links lead."""
    built = {"tidemill-ring": overview(console, runbooks)}
    for part in PARTS:
        uid = f"tidemill-{part}"
        derived = [each for each in DERIVED if each.part == part]
        built[uid] = dashboard(uid, f"Tidemill: {part}", [*(metric for metric in TABLE if metric.part == part), *derived])
    built["tidemill-promotions"] = dashboard(
        "tidemill-promotions", "Tidemill: promotions", [metric for metric in TABLE if metric.name.startswith(MOVING)]
    )
    return built


def overview(console: str, runbooks: str) -> dict[str, Any]:
    """The dashboard for a person on call: a row for each question, with links to its runbooks."""
    model = dashboard("tidemill-ring", "Tidemill: is the ring well?", [])
    for name, label, query in (("replica", "Actor", 'label_values(up{job="tidemill", part="actor"}, instance)'),
                               ("policy", "Policy", "label_values(tidemill_serving_version, policy)")):  # fmt: skip
        model["templating"]["list"].append(_variable(name, label, query))
    model["links"] = [_link("Console", console), *(_link(f"Metrics of {part}", f"/d/tidemill-{part}") for part in PARTS)]
    top = 0
    for row in ROWS:
        pages = ", ".join(f"[{page}]({runbooks.rstrip('/')}/{page}.md)" for page in row.runbooks)
        number = len(model["panels"])
        model["panels"].append({"id": number + 1, "type": "row", "title": row.question, "collapsed": False, "panels": [], "targets": [],
                                "gridPos": {"x": 0, "y": top, "w": 3 * THIRD, "h": 1}})  # fmt: skip
        model["panels"].append({"id": number + 2, "type": "text", "title": "When it is not", "targets": [],
                                "options": {"mode": "markdown", "content": f"Alerts and what to do: {pages}"},
                                "gridPos": {"x": 0, "y": top + 1, "w": 3 * THIRD, "h": 2}})  # fmt: skip
        for place, asked in enumerate(row.panels):
            across, down = THIRD * (place % 3), top + 3 + HEIGHT * (place // 3)
            model["panels"].append(_asked(asked, number + 3 + place, across, down))
        top += 3 + HEIGHT * -(-len(row.panels) // 3)
    return model


def _asked(asked: QuestionPanel, number: int, across: int, down: int) -> dict[str, Any]:
    """A panel of the overview: green, yellow from ``warn``, red from ``bad``; the other way round where low is bad."""
    limits = [(colour, value) for colour, value in (("yellow", asked.warn), ("red", asked.bad)) if value is not None]
    if asked.low_is_bad:
        worst = "red" if asked.bad is not None else "yellow"
        steps = [{"color": worst, "value": None}, *({"color": "yellow" if value == asked.bad and asked.warn is not None else "green", "value": value}
                                                    for _, value in reversed(limits))]  # fmt: skip
    else:
        steps = [{"color": "green", "value": None}, *({"color": colour, "value": value} for colour, value in limits)]
    defaults: dict[str, Any] = {"unit": asked.unit, "color": {"mode": "palette-classic"}}
    if limits:
        defaults |= {"thresholds": {"mode": "absolute", "steps": steps}, "custom": {"thresholdsStyle": {"mode": "line+area"}}}
    return {
        "id": number,
        "type": "timeseries",
        "title": asked.title,
        "description": asked.sentence,
        "datasource": DATA_SOURCE,
        "gridPos": {"x": across, "y": down, "w": THIRD, "h": HEIGHT},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": DATA_SOURCE, "expr": expression, "legendFormat": legend}
            for i, (expression, legend) in enumerate(asked.expressions)
        ],
    }


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    """A choice at the top of the dashboard; everything to begin with."""
    return {"name": name, "label": label, "type": "query", "datasource": DATA_SOURCE, "query": query, "refresh": 2, "multi": True, "includeAll": True,
            "allValue": ".*", "current": {"text": "All", "value": "$__all"}}  # fmt: skip


def _link(title: str, url: str) -> dict[str, Any]:
    return {"title": title, "type": "link", "url": url, "targetBlank": True}


def dashboard(uid: str, title: str, metrics: Sequence[Metric | Derived]) -> dict[str, Any]:
    """One dashboard: one panel per metric, three in a row."""
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


def panel(metric: Metric | Derived, number: int) -> dict[str, Any]:
    """One metric as a time series, with its sentence as the description."""
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title(metric),
        "description": metric.sentence,
        "datasource": DATA_SOURCE,
        "gridPos": {"x": 8 * (number % 3), "y": 8 * (number // 3), "w": 8, "h": 8},
        "fieldConfig": {"defaults": {"unit": unit(metric), **bounds(metric)}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": DATA_SOURCE, "expr": expression, "legendFormat": legend}
            for i, (expression, legend) in enumerate(expressions(metric))
        ],
    }


def expressions(metric: Metric | Derived) -> list[tuple[str, str]]:
    """PromQL expressions with legends: the rate of a counter, quantiles of a histogram, the value of a gauge."""
    if isinstance(metric, Derived):
        return [(metric.expression, metric.legend)]
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


def bounds(metric: Metric | Derived) -> dict[str, int]:
    """Bounds of the axis. A difference may be negative."""
    if isinstance(metric, Metric) and metric.name.endswith("_difference"):
        return {"min": -1, "max": 1}
    return {"min": 0, "max": 1} if unit(metric) == "percentunit" else {"min": 0}


def title(metric: Metric | Derived) -> str:
    """The metric's name in words."""
    if isinstance(metric, Derived):
        return metric.title
    words = metric.name.removeprefix("tidemill_")
    for suffix in ("_total", "_seconds", "_ratio", "_nats", "_records"):
        words = words.removesuffix(suffix)
    return words.replace("_", " ").capitalize() + (" per second" if metric.kind == "counter" else "")


def unit(metric: Metric | Derived) -> str:
    """Grafana's name for the unit."""
    if isinstance(metric, Derived):
        return metric.unit
    if metric.kind == "counter":
        return "cps"
    if metric.name.endswith("_seconds"):
        return "s"
    return "percentunit" if metric.name.endswith("_ratio") else "short"
