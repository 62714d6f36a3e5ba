"""Small charts as inline SVG, drawn on the server: no script, no library, readable in light and dark. Colours are the style sheet's."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

At = Callable[[float, float], tuple[float, float]]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 264, 60, 22, 14, 46


@dataclass(frozen=True)
class Line:
    """One curve: points (x, y), each with its interval where it has one. ``dashed`` tells curves apart without colour."""

    name: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float]] = ()
    dashed: bool = False
    joined: bool = True


def chart(title: str, lines: Sequence[Line], x_name: str, y_name: str, percent: bool = False, x_labels: Sequence[str] = ()) -> Markup:
    """An SVG with axes. ``x_labels`` name x = 0, 1, 2 … instead of numbers. Without any point it says so."""
    points = [point for line in lines for point in line.points]
    if not points:
        return Markup('<p class="empty">Nothing to draw yet.</p>')
    ends = [y for line in lines for interval in line.intervals for y in interval]
    x0, x1 = (-0.5, len(x_labels) - 0.5) if x_labels else _span([x for x, _ in points])
    y0, y1 = (0.0, 1.0) if percent else _span([0.0, *[y for _, y in points], *ends])
    steps = _ticks(y0, y1)
    y1 = max(y1, steps[-1])

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x0) / (x1 - x0), (y - y0) / (y1 - y0)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    out = [Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, title)]
    for step in steps:
        _, y = at(x0, step)
        out.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(LEFT, WIDTH - RIGHT, y, y))
        told = f"{step:.0%}" if percent else number(step)
        out.append(Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(LEFT - 6, y + 4, told))
    out += _x_axis(x0, x1, x_labels, at)
    out.append(Markup('<text class="name" x="{}" y="{}" text-anchor="middle">{}</text>').format((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_name))
    out.append(Markup('<text class="name up" transform="translate(12 {}) rotate(-90)" text-anchor="middle">{}</text>').format(
        (TOP + HEIGHT - BOTTOM) / 2, y_name))  # fmt: skip
    for place, line in enumerate(lines):
        out += _line(line, place, at, percent)
    out.append(Markup("</svg>"))
    return Markup("").join(out) + _legend(lines)


def number(value: float) -> str:
    """Short, for an axis or a table."""
    if value and abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _line(line: Line, place: int, at: At, percent: bool) -> list[Markup]:
    out = []
    where = [at(x, y) for x, y in line.points]
    kind = f"s{place}" + (" dashed" if line.dashed else "")
    if line.joined and len(where) > 1:
        out.append(Markup('<polyline class="line {}" points="{}"/>').format(kind, " ".join(f"{x:.1f},{y:.1f}" for x, y in where)))
    for (x, _), (low, high) in zip(line.points, line.intervals, strict=False):
        (px, p_low), (_, p_high) = at(x, low), at(x, high)
        out.append(Markup('<path class="line {}" d="M{:.1f} {:.1f}V{:.1f}M{:.1f} {:.1f}h8M{:.1f} {:.1f}h8"/>').format(
            kind, px, p_low, p_high, px - 4, p_low, px - 4, p_high))  # fmt: skip
    if not line.joined or len(where) <= 60:
        for (x, y), (px, py) in zip(line.points, where, strict=True):
            told = f"{y:.0%}" if percent else number(y)
            out.append(Markup('<circle class="dot s{}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}: {}, {}</title></circle>').format(
                place, px, py, 4 if not line.joined else 2.5, line.name, number(x), told))  # fmt: skip
    return out


def _x_axis(x0: float, x1: float, labels: Sequence[str], at: At) -> list[Markup]:
    if labels:
        every = max(1, math.ceil(len(labels) / 8))
        places = [(float(i), label) for i, label in enumerate(labels) if i % every == 0]
    else:
        places = [(x, number(x)) for x in _ticks(x0, x1) if x0 <= x <= x1 and x == round(x)]  # labels, steps, versions: there are no halves
    return [Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(at(x, 0)[0], HEIGHT - BOTTOM + 20, label)
            for x, label in places]  # fmt: skip


def _legend(lines: Sequence[Line]) -> Markup:
    if len(lines) < 2:
        return Markup("")
    items = Markup("").join(
        Markup('<li><svg class="key" viewBox="0 0 24 8" aria-hidden="true"><line class="line s{}{}" x1="0" x2="24" y1="4" y2="4"/></svg>{}</li>').format(
            place, " dashed" if line.dashed else "", line.name)
        for place, line in enumerate(lines)
    )  # fmt: skip
    return Markup('<ul class="legend">{}</ul>').format(escape(items))


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        return low - 0.5, high + 0.5
    return low, high


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers over a span."""
    raw = (high - low) / 4
    size = 10 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first if low < 0 else max(first, 0), last + 1)]
