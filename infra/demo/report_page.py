"""``report.html``: one self-contained page with plots; it needs no network."""

import html
import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from infra.demo.report import Report, preference_words

FEWEST_TESTED = 10
"""With fewer unseen labels, figures are not drawn: they would be noise."""
SHOWN = 8
"""Pairs of answers that are always visible; the others fold out."""
INK, RISE, FALL, SOFT = "#1b3a4b", "#2a9d8f", "#c8553d", "#8d99ae"

STYLE = """
:root{--ink:#1b3a4b;--paper:#fbfaf7;--soft:#5c6b73;--line:#dfe3e6;--good:#1f7a6f;--bad:#b23a23}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1040px;margin:0 auto;padding:2rem 1.25rem 4rem}h1{font-size:1.7rem;margin:0 0 .25rem}h2{margin:2.25rem 0 .5rem;font-size:1.15rem}
.verdict{font-size:1.1rem;font-weight:600}.good{color:var(--good)}.bad{color:var(--bad)}.note{color:var(--soft);max-width:70ch}
.big{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:1rem;margin:1.5rem 0}
.big div{background:#fff;border:1px solid var(--line);border-radius:8px;padding:1rem}.big b{display:block;font-size:1.9rem;line-height:1.15}
table{border-collapse:collapse;width:100%;background:#fff}th,td{border:1px solid var(--line);padding:.5rem .65rem;text-align:left;vertical-align:top}
th{font-weight:600;white-space:nowrap}td pre{margin:0;font:13px/1.45 ui-monospace,monospace;white-space:pre-wrap}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr));gap:1rem}.plots svg{width:100%;height:auto;background:#fff;border:1px solid var(--line);border-radius:8px}
.pairs td{width:38%}.pairs td:first-child{width:24%}summary{cursor:pointer;margin:.75rem 0}
@media(max-width:640px){table,tbody,tr,th,td{display:block;width:auto!important;border:0}tr{border:1px solid var(--line);margin-bottom:.5rem}th,td{padding:.3rem .65rem}.heads{display:none}
.pairs td:nth-child(2)::before{content:"before ";color:var(--soft)}.pairs td:nth-child(3)::before{content:"after ";color:var(--soft)}.pairs td:first-child{font-weight:600}}
"""


def write_html(report: Report, path: Path) -> None:
    """Write the page."""
    boxes = [
        (
            "approval before",
            f"{report.approval_before.estimate:.0%}",
            f"95 % interval {report.approval_before.low:.0%} to {report.approval_before.high:.0%}",
        ),
        (
            "approval after",
            f"{report.approval_after.estimate:.0%}",
            f"95 % interval {report.approval_after.low:.0%} to {report.approval_after.high:.0%}",
        ),
        ("rise", f"{report.rise.estimate * 100:+.0f} points", f"paired by question: {report.rise.low * 100:+.0f} to {report.rise.high * 100:+.0f}"),
        ("thumbs", str(report.tally.thumbs), f"on {report.tally.answers} answers, {report.tally.failed} requests failed"),
    ]
    pairs = [
        f"<tr><td>{_e(a.question.text)}</td><td>{_mark(a.approved)} {_e(a.text)}</td><td>{_mark(b.approved)} {_e(b.text)}</td></tr>"
        for a, b in zip(report.before, report.after, strict=False)
    ]
    heads = f'<tr class="heads"><th>question<th>before (base)<th>after ({_e(", ".join(report.served_after))})</tr>'
    path.write_text(f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Tidemill: one turn of the ring</title><style>{STYLE}</style><main>
<h1>One turn of the ring</h1><p class="verdict {"good" if report.verdict == "closed" else "bad"}">{_e(report.words)}</p>
<p class="note">The people are simulated. They like {_e(preference_words(report))}. The learner never saw that rule: it saw thumbs on
{report.settings.people.vote_ratio:.0%} of the answers, late, and {report.settings.people.noise_ratio:.0%} of them inverted. Approval is that of the served
policy, by the true preference, on {len(report.before)} questions about held-out subjects: neither the reward model nor the learner ever saw one of
them. Seed {report.settings.people.seed}.</p>
<div class="big">{"".join(f"<div>{_e(name)}<b>{_e(value)}</b><span class=note>{_e(more)}</span></div>" for name, value, more in boxes)}</div>
<h2>The same question, before and after</h2><table class="pairs">{heads}{"".join(pairs[:SHOWN])}</table>
<details><summary>The other {max(0, len(pairs) - SHOWN)}</summary><table class="pairs">{heads}{"".join(pairs[SHOWN:])}</table></details>
<h2>How it went</h2><div class="plots">{_approval_plot(report)}{_rise_plot(report)}{_curve_plot(report)}{_reward_plot(report)}{_kl_plot(report)}</div>
<h2>Figures</h2><table>{"".join(f"<tr><th>{_e(n)}<td><pre>{_e(v)}</pre>" for n, v in report.rows())}</table>
</main></html>""")


def _approval_plot(report: Report) -> str:
    figure, axes = pyplot.subplots(figsize=(5, 3.2))
    for x, (interval, colour) in enumerate(((report.approval_before, SOFT), (report.approval_after, RISE))):
        axes.bar(x, interval.estimate, color=colour, width=0.55)
        axes.errorbar(x, interval.estimate, yerr=[[interval.estimate - interval.low], [interval.high - interval.estimate]], color=INK, capsize=6)
    axes.set_xticks([0, 1], ["before (base)", f"after ({', '.join(report.served_after)})"])
    axes.set_ylim(0, 1)
    return _finish(figure, axes, "True approval on held-out questions, 95 % intervals", "", "")


def _curve_plot(report: Report) -> str:
    figure, axes = pyplot.subplots(figsize=(5, 3.2))
    if report.samples:
        axes.plot([t for t, _, _ in report.samples], [approval for _, approval, _ in report.samples], color=RISE)
        served = [(t, name) for (t, _, name), (_, _, last) in zip(report.samples[1:], report.samples, strict=False) if name != last]
        for t, _ in served:
            axes.axvline(t, color=SOFT, lw=0.6)
    axes.set_ylim(0, 1)
    return _finish(figure, axes, "True approval of the last 100 answers; a vertical line: a new adapter is served", "seconds", "")


def _reward_plot(report: Report) -> str:
    figure, axes = pyplot.subplots(figsize=(5, 3.2))
    models = [model for model in report.facts.reward_models if model.calibration.labels >= FEWEST_TESTED]
    labels, told = [m.labels for m in models], [m.calibration for m in models]
    axes.plot(labels, [_or_nan(c.auc) for c in told], color=INK, label="AUC (guessing: 0.5)")
    axes.plot(labels, [_or_nan(c.log_loss) for c in told], color=RISE, label="log loss")
    axes.plot(labels, [_or_nan(c.baseline_log_loss) for c in told], color=RISE, ls="--", label="log loss of the base rate")
    axes.plot(labels, [c.ece for c in told], color=FALL, lw=1, label="calibration error")
    axes.set_ylim(0, 1.2)
    if models:
        axes.legend(frameon=False, fontsize=8, loc="upper left", ncol=2)
    return _finish(figure, axes, "The reward model, on labels it had not seen", "labels", "")


def _rise_plot(report: Report) -> str:
    figure, axes = pyplot.subplots(figsize=(5, 3.2))
    known = [(at_s / 60, rise) for at_s, rise in report.pairs.samples if rise.pairs]
    minutes, intervals = [at for at, _ in known], [rise.interval for _, rise in known]
    axes.axhline(0, color=SOFT, lw=0.8)
    axes.fill_between(
        minutes, [i.low for i in intervals], [i.high for i in intervals], color=RISE, alpha=0.2, lw=0, label="95 % interval, valid at any time"
    )
    axes.plot(minutes, [i.estimate for i in intervals], color=RISE, marker=".", label="adapters minus base")
    first = next((at for at, rise in known if rise.shown), None)
    if first is not None:
        axes.axvline(first, color=INK, lw=0.8, ls="--", label="shown")
    axes.set_ylim(-1, 1)
    if known:
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    return _finish(figure, axes, "The rise by pairs of held-out questions", "minutes", "")


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _kl_plot(report: Report) -> str:
    figure, axes = pyplot.subplots(figsize=(5, 3.2))
    adapters = report.facts.adapters
    steps = [a.step for a in adapters]
    axes.plot(steps, [a.metrics.get("reward_mean", float("nan")) for a in adapters], color=RISE, label="mean reward of rollouts")
    axes.plot(steps, [a.metrics.get("kl_nats", float("nan")) for a in adapters], color=FALL, label="KL to the base, nats per token")
    if adapters:
        axes.legend(frameon=False, fontsize=8)
    return _finish(figure, axes, "The learner", "RL step", "")


def _finish(figure: pyplot.Figure, axes: pyplot.Axes, title: str, x: str, y: str) -> str:
    axes.set_title(title, fontsize=9, color=INK)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    out = io.StringIO()
    figure.savefig(out, format="svg")
    pyplot.close(figure)
    return out.getvalue()[out.getvalue().index("<svg") :]


def _mark(approved: bool) -> str:
    return f'<span class="{"good" if approved else "bad"}" title="{"approved" if approved else "not approved"}">{"✓" if approved else "✗"}</span>'


def _e(text: str) -> str:
    return html.escape(text)
