"""The pictures of the page: PNG bytes, the same for the same results."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from comgrad.workflows.bench_screening.figures import curve
from comgrad.workflows.bench_screening.plan import ADAPTIVE, BENIGN, CLEAN, POISONED
from comgrad.workflows.bench_screening.results import Results
from comgrad.workflows.bench_screening.settings import SETTINGS
from comgrad.workflows.bench_screening.table import SETS, WHOLE

COLOURS = ("#bbbbbb", "#ccbb44", "#4477aa", "#ee6677", "#228833", "#aa3377")


def pictures(results: Results) -> dict[str, bytes]:
    """Name's end → PNG: ROC curves of every setting, scores of every group, reliability."""
    out = {"roc": _roc(results)}
    scores = _scores(results)
    if scores is not None:
        out["scores"] = scores
    out["reliability"] = _reliability(results)
    return out


def _roc(results: Results) -> bytes:
    """Poisoned against clean vectors; one panel a setting, one curve a set of features."""
    settings = [s for s in SETTINGS if any(j.setting == s for j in results.judged)]
    fig, axes = _panels(len(settings))
    for ax, setting in zip(axes, settings, strict=True):
        ax.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=0.8)
        for features, colour in zip(SETS, COLOURS, strict=False):
            judged = next((j for j in results.judged if (j.setting, j.features) == (setting, features)), None)
            area = results.area(setting, features)
            if judged is None or area is None:
                continue
            kinds = results.table.kinds[list(judged.rows)]
            used = np.isin(kinds, (CLEAN, POISONED))
            x, y = curve(judged.scores[used].tolist(), (kinds[used] == POISONED).tolist())
            label = f"{features}: {area.auroc:.3f} [{area.low:.3f}, {area.high:.3f}]"
            ax.step(x, y, where="post", color=colour, linewidth=1.6, label=label)
        ax.set_title(f"{setting}: poisoned against clean", fontsize=9)
        ax.set_xlabel("clean vectors above the threshold")
        ax.set_ylabel("poisoned vectors above the threshold")
        ax.set_aspect("equal")
        ax.legend(fontsize=7, loc="lower right", title="AUROC, 95 %", title_fontsize=7)
    return _png(fig)


def _scores(results: Results) -> bytes | None:
    """Probabilities that all features give to the vectors of every group, in each setting; None without any."""
    found = [j for s in SETTINGS for j in results.judged if (j.setting, j.features) == (s, WHOLE)]
    if not found:
        return None
    groups = [g for g in (*BENIGN, POISONED, *ADAPTIVE) if g in set(results.table.kinds.tolist())]
    fig, axes = _panels(len(found), shared=True)
    rng = np.random.default_rng(0)
    for ax, judged in zip(axes, found, strict=True):
        kinds = results.table.kinds[list(judged.rows)]
        for at, group in enumerate(groups):
            mine = judged.scores[kinds == group]
            height = at + rng.uniform(-0.28, 0.28, len(mine))
            ax.scatter(mine, height, s=9, alpha=0.6, color=COLOURS[at % len(COLOURS)])
            if len(mine):
                ax.plot([np.median(mine)] * 2, [at - 0.36, at + 0.36], color="black", linewidth=1.6)
        ax.set_yticks(range(len(groups)), groups)
        ax.invert_yaxis()
        ax.set_xlim(-0.02, 1.02)
        ax.set_xlabel("probability of being poisoned (black: median)")
        ax.set_title(judged.setting, fontsize=9)
    return _png(fig)


def _reliability(results: Results) -> bytes:
    """Said probability against observed share, all features."""
    fig, axes = _panels(1)
    axes[0].plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=0.8)
    shown = [a for a in results.answers if a.features == WHOLE] or results.answers
    for a, colour in zip(shown, COLOURS[2:], strict=False):
        label = f"{a.setting}: Brier {a.brier:.3f}"
        axes[0].plot(
            [r[0] for r in a.reliability], [r[1] for r in a.reliability], marker="o", color=colour, label=label
        )
    axes[0].set_xlabel("mean probability said")
    axes[0].set_ylabel("share that is poisoned")
    axes[0].set_xlim(0, 1)
    axes[0].set_ylim(0, 1)
    axes[0].legend(fontsize=8)
    return _png(fig)


def _panels(n: int, *, shared: bool = False) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(4.7 * n, 4.4), dpi=110, layout="constrained")
    return fig, list(np.ravel(fig.subplots(1, n, sharey=shared, squeeze=False)))


def _png(fig: Any) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
