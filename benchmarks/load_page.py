"""The results of the load benchmark as a table and as a page; every word that judges is derived from the figures."""

from __future__ import annotations

from typing import Any

TARGETS = {"search": 100.0, "suggestion": 500.0}  # milliseconds, p99 of the mixed phase
UPLOADS = 20.0  # per second
FLAT = 0.05


def table(told: dict[str, Any]) -> str:
    """For a terminal."""
    lines = [f"{'phase':<11}{'kind':<12}{'answers':>8}{'errors':>7}{'/s':>8}{'p50 ms':>9}{'p90 ms':>9}{'p99 ms':>9}"]
    for r in told["rows"]:
        times = "".join(f"{r[k]:>9.1f}" if r[k] is not None else f"{'-':>9}" for k in ("p50_ms", "p90_ms", "p99_ms"))
        lines.append(f"{r['phase']:<11}{r['kind']:<12}{r['answers']:>8}{r['errors']:>7}{r['per_second']:>8.1f}{times}")
        lines += [f"    {e}" for e in r["first_errors"]]
    for name, m in told["memory"].items():
        if m:
            lines.append(
                f"memory, {name}: {m['first']:.0f} -> {m['last']:.0f} MiB ({m['change']:+.1%}), most {m['most']:.0f}"
            )
    return "\n".join([*lines, *_uploads(told), *verdicts(told)])


def _uploads(told: dict[str, Any]) -> list[str]:
    u = told["uploads"]
    if u is None:
        return []
    first = f"{u['sent']} uploads of {u['bytes'] / 1000:.0f} kB in {u['seconds_sending']:.1f} s"
    rest = f"taken in after {u['seconds_to_taken_in']:.1f} s ({u['taken_in_per_second']:.1f}/s)"
    return [
        f"{first}: {u['acknowledged_per_second']:.1f}/s acknowledged; {u['taken_in']} {rest}; "
        f"embedded and related after {u['seconds_to_related']:.1f} s"
    ]


def verdicts(told: dict[str, Any]) -> list[str]:
    """Each target, and whether the figures meet it."""
    out = []
    for r in told["rows"]:
        target = TARGETS.get(r["kind"])
        if r["phase"] == "mixed" and target is not None and r["p99_ms"] is not None:
            out.append(
                _verdict(f"{r['kind']} p99 of at most {target:.0f} ms", r["p99_ms"] <= target, f"{r['p99_ms']:.0f} ms")
            )
    wrong = sum(r["errors"] for r in told["rows"])
    out.append(_verdict("no wrong answer and no error", wrong == 0, str(wrong)))
    flat = told["memory"].get("mixed")
    if flat:
        out.append(
            _verdict(f"memory that grows by at most {FLAT:.0%}", flat["change"] <= FLAT, f"{flat['change']:+.1%}")
        )
    if told["uploads"]:
        for name, what in (("acknowledged", "acknowledged"), ("taken_in", "taken in, jobs included")):
            rate = told["uploads"][f"{name}_per_second"]
            out.append(_verdict(f"{UPLOADS:.0f} uploads a second {what}", rate >= UPLOADS, f"{rate:.1f}/s"))
    return out


def _verdict(what: str, met: bool, found: str) -> str:
    return f"{'met' if met else 'NOT MET'}: {what}: {found}"


def page(told: dict[str, Any]) -> str:
    """As a page of the documentation."""
    e = told["environment"]
    head = f"""# The service under load

Written by `{e["command"]}` on {e["cores"]} cores ({e["cpu"]}, {e["memory_gib"]} GiB, Python {e["python"]}); the clients
shared these cores with the service. Load average before: {e["load_before"]:.1f}.

{e["vectors"]} vectors are registered: real adapters, derived from the shipped ones (mixtures of two, a turned part of a third,
noise), with different descriptions. `comgrad serve` is a process of its own{_beside(e)}; {e["clients"]} clients ask over
loopback. Rate limits are lifted, as all clients have one address, and screening is off; everything else is as by default.
No text is asked twice, so no answer to a question in words comes from memory. Every answer is checked in status and contents.

*mixed*: each client asks (60 % searches, 20 % catalogue pages, 15 % pages of a vector, 5 % suggestions), waits for the answer and
thinks for {e["pace"]:g} s on average. *calm*: the same, thinking three times as long. The other phases are as fast as the
clients can ask, so their times say how long {e["clients"]} waiting clients wait, and their rates how much the service can do.

| phase | kind | answers | errors | per second | p50 ms | p90 ms | p99 ms | slowest ms |
|---|---|---|---|---|---|---|---|---|
"""
    rows = [
        f"| {r['phase']} | {r['kind']} | {r['answers']} | {r['errors']} | {r['per_second']:.1f} | "
        + " | ".join("–" if r[k] is None else f"{r[k]:.0f}" for k in ("p50_ms", "p90_ms", "p99_ms", "most_ms"))
        + " |"
        for r in told["rows"]
    ]
    memory = [
        f"| {name} | {m['first']:.0f} | {m['last']:.0f} | {m['change']:+.1%} | {m['most']:.0f} |"
        for name, m in told["memory"].items()
        if m
    ]
    parts = [head + "\n".join(rows), "## Targets", "\n".join(f"- {v}" for v in verdicts(told))]
    if told["uploads"]:
        parts += ["## Uploads", "\n".join(_uploads(told)) + "."]
    words = "Resident memory of the service and its workers, MiB; mean of the first and of the last minute of a phase"
    head_of = "| phase | first | last | change | most |\n|---|---|---|---|---|\n"
    parts += ["## Memory", f"{words} (of its fifths where it is shorter).\n\n{head_of}" + "\n".join(memory)]
    return "\n\n".join(parts) + "\n"


def _beside(e: dict[str, Any]) -> str:
    return f", with {e['workers']} worker processes beside it" if e["workers"] else ", its jobs in its own threads"
