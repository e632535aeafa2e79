"""Attacks on rankings: copies, scaled and turned ones, and the mean of all, in another's words."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from service import CARD, CONFIG, CONTAINER, WEIGHTS, ZOO, Site, code, row

Got = tuple[str, bool]


def made_of(site: Site, make: Any, base: str, **card: Any) -> dict[str, bytes]:
    """An upload of a vector that `make` returns."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CONTAINER
        make().save(path)
        own = json.loads(site.adapter(0)[CARD]) | {"base_model": base, **card}
        for key in ("training", "label_names", "label_prompts", "task_id"):
            own.pop(key, None)
        return {CONTAINER: path.read_bytes(), CARD: json.dumps(own).encode()}


@row(
    "40–43",
    "a vector ×100, a mean of the public ones and twelve near-copies, each in the words of bob's",
    "none of them comes before bob's; copies count once",
)
def ranking(site: Site) -> Got:
    import comgrad as cg

    folders = sorted(p for p in ZOO.iterdir() if p.is_dir())
    taus = [cg.TaskVector.from_peft(folders[i]) for i in range(11)]
    words = json.loads((folders[0] / CARD).read_text())["description"]
    base = taus[0].base.name
    for i in range(1, 11):  # more that is public, so that the mean has parents
        site.share(site.adapter(i), name=f"public-{i}", visibility="public")
    told = []
    tries = {
        "times-100": lambda: 100.0 * taus[0],
        "hub": lambda: (1 / 11) * sum(taus[1:], start=taus[0]),
    }
    tries |= {f"copy-{i}": (lambda i=i: (1.0 + 1e-4 * (i + 1)) * taus[0]) for i in range(12)}
    for name, make in tries.items():
        told.append(
            code(
                site.share(
                    made_of(site, make, base, description=words), name=name, visibility="public", who="eve", base=base
                )
            )
        )
    until = time.monotonic() + 60
    while (
        any(j["state"] in ("queued", "running") for j in site.ok("GET", "/api/v1/jobs", who="eve")["items"])
        and time.monotonic() < until
    ):
        time.sleep(0.5)
    began, shown = time.monotonic(), ["?"]
    while shown and time.monotonic() < began + 60:  # what is new is weighed in the background
        hits = site.ok("POST", "/api/v1/search", json={"text": words, "limit": 20, "words": True})["items"]
        order = [h["full_name"] for h in hits]
        shown = [n for n in order if n.startswith("eve/copy") or n == "eve/times-100"]
        if order[:1] != ["bob/open"]:
            break
        time.sleep(0.2)
    seconds = time.monotonic() - began
    doubt = next((h["doubt"] for h in hits if h["full_name"] == "eve/hub"), "not shown")
    return (
        f"{sorted(set(told))}; first {order[0]}, copies shown {shown} after {seconds:.1f} s, the mean: {doubt[:60]!r}",
        order[0] == "bob/open" and not shown and bool(doubt),
    )


@row(
    "44",
    "a copy of bob's vector: factors rotated, weights written anew, under eve's name",
    "told as derived from, or near to, bob's",
)
def rotated(site: Site) -> Got:
    import torch

    import comgrad as cg

    folder = sorted(p for p in ZOO.iterdir() if p.is_dir())[1]
    with tempfile.TemporaryDirectory() as temporary:
        from safetensors.torch import load_file, save_file

        state, turn = load_file(folder / WEIGHTS), torch.Generator().manual_seed(1)
        for key in [k for k in state if ".lora_A." in k]:
            other = key.replace(".lora_A.", ".lora_B.")
            g = torch.linalg.qr(
                torch.randn(state[key].shape[0], state[key].shape[0], generator=turn, dtype=torch.float64)
            )[0]
            a, b = state[key].double(), state[other].double()
            state[key], state[other] = (
                (g.T @ a).to(state[key].dtype).contiguous(),
                (b @ g).to(state[other].dtype).contiguous(),
            )
        save_file(state, Path(temporary) / WEIGHTS, {"format": "pt"})
        data = (Path(temporary) / WEIGHTS).read_bytes()
    _ = cg
    made = site.share(
        {CONFIG: site.adapter(1)[CONFIG], WEIGHTS: data},
        name="rotated",
        visibility="public",
        who="eve",
        description="something else altogether",
    )
    assert made.status_code < 300, code(made)
    vector = made.json()["job"]["result"]["vector"]
    near = site.ok("GET", f"/api/v1/vectors/{vector}/neighbours")["items"][0]
    return (
        f"{'the same id' if vector == site.ids['second'] else 'another id'}; nearest {near['full_name']}, cosine {near['cosine']:.4f}",
        near["id"] == site.ids["second"] and near["cosine"] > 0.99,
    )


@row(
    "45",
    "an adapter of another task in the words of bob's: mislabelled",
    "doubted in search, or an advisory verdict with its figures",
)
def mislabelled(site: Site) -> Got:
    words = json.loads(site.adapter(0)[CARD])["description"]
    parts = site.adapter(12, description=words)
    made = site.share(parts, name="mislabelled", visibility="public", who="eve")
    vector = made.json()["job"]["result"]["vector"]
    until, doubt, verdict, told = time.monotonic() + 120, "", None, {}
    while time.monotonic() < until and not (doubt and verdict):
        hits = site.ok("POST", "/api/v1/search", json={"text": words, "limit": 20, "words": True})["items"]
        doubt = next((h["doubt"] for h in hits if h["id"] == vector), "")
        told = site.ok("GET", f"/api/v1/vectors/{vector}")["vector"].get("screening") or {}
        verdict = told.get("verdict")
        time.sleep(1)
    figures = [e.get("name") for e in told.get("evidence") or []]
    return f"doubt {doubt[:80]!r}; verdict {verdict!r} on {figures}", bool(doubt or (verdict and figures))
