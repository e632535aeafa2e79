"""Attacks on rankings: copies, scaled and turned ones, and the mean of all, in another's words."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from markupsafe import escape

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
    site.settled()
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
    "43",
    "a flood: twenty-four vectors of one account for one task, too unlike to be copies, in words of its own",
    "at most three of them count; others' come before the rest, and a suggestion takes no more than three",
)
def flood(site: Site) -> Got:
    import numpy as np
    from safetensors.numpy import load, save

    words = "say whether the letter of a customer to the waterworks sounds content or cross today"
    votes, many, told = 3, 24, []
    whole = load(site.adapter(14)[WEIGHTS])
    for i in range(many):
        rng = np.random.default_rng(i)
        noisy = {k: (v + 0.45 * v.std() * rng.standard_normal(v.shape)).astype(v.dtype) for k, v in whole.items()}
        said = " ".join(rng.permutation(words.split()))  # words of its own each time, so that none repeats another's
        parts = {**site.adapter(14, description=said, task_id=""), WEIGHTS: save(noisy, {"format": "pt"})}
        told.append(code(site.share(parts, name=f"flood-{i}", visibility="public", who="eve")))
    site.settled()
    until, counted, order = time.monotonic() + 120, ["?"] * many, []
    while len(counted) > votes and time.monotonic() < until:  # what is new is weighed in the background
        hits = site.ok("POST", "/api/v1/search", json={"text": words, "limit": 100})["items"]
        order = [(h["full_name"], str(h["doubt"]), int(h["copies"])) for h in hits]
        counted = [n for n, doubt, _ in order if n.startswith("eve/flood") and not doubt]
        time.sleep(0.5)
    copies = sum(c for n, _, c in order if n.startswith("eve/flood"))
    others = [at for at, (n, doubt, _) in enumerate(order) if not doubt and not n.startswith("eve/")]
    early = [n for n, doubt, _ in order[: max(others, default=0)] if doubt]
    made = site.ok("POST", "/api/v1/suggestions", json={"text": words, "dare": True})
    sources = [s["name"] for s in made["sources"] if s["name"].startswith("eve/flood")]
    capped = sum("of one account" in doubt for _, doubt, _ in order)
    good = set(told) == {"201"} and not copies and 0 < len(counted) <= votes and bool(others) and not early
    return (
        f"{sorted(set(told))}, {copies} told as copies; {len(counted)} count, {capped} are one account's too many; doubtful "
        f"ones before others': {len(early)}; of a suggestion's {len(made['sources'])} sources theirs are {len(sources)}",
        good and capped > 0 and len(sources) <= votes,
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
    "an adapter of another task in the words of bob's, and one whose weights were tampered with",
    "an advisory verdict with its score and what others score, on its page; both stay downloadable",
)
def mislabelled(site: Site) -> Got:
    import numpy as np
    from safetensors.numpy import load, save

    for i in range(2, len([p for p in ZOO.iterdir() if p.is_dir()])):  # there must be something to measure against
        if i not in (12, 15):
            made = site.share(site.adapter(i), name=f"known-{i}", visibility="public")
            assert made.status_code < 300 or code(made) == "409 conflict", code(made)
    words = json.loads(site.adapter(0)[CARD])["description"]
    other = site.adapter(15, description="tell apart what a tampered adapter of a stranger is for")
    state = load(other[WEIGHTS])
    rng = np.random.default_rng(0)
    for key in [k for k in state if ".lora_B." in k][-2:]:  # a strong direction of rank one in the last layers
        u, v = rng.standard_normal(state[key].shape[0]), rng.standard_normal(state[key].shape[1])
        state[key] = (state[key] + 30 * state[key].std() * np.outer(u, v)).astype(state[key].dtype)
    tries = {
        "mislabelled": site.adapter(12, description=words),
        "tampered": {**other, WEIGHTS: save(state, {"format": "pt"})},
    }
    said, good = [], True
    for name, parts in tries.items():
        made = site.share(parts, name=name, visibility="public", who="eve")
        vector = made.json()["job"]["result"]["vector"]
        until, told = time.monotonic() + 300, {}
        while time.monotonic() < until and not told:
            told = site.ok("GET", f"/api/v1/vectors/{vector}")["vector"].get("screening") or {}
            time.sleep(1)
        scored = [e for e in told.get("evidence") or [] if e["figure"] and e["null"]]
        page = site.call("GET", f"/vectors/{vector}").text
        kept = site.call("GET", f"/api/v1/vectors/{vector}/files/{CONTAINER}").status_code == 200
        odd = [f"{e['name']} {e['figure']} ({e['null']})" for e in scored if e["weight"] != "fine"]
        said.append(
            f"{name}: {told.get('verdict')!r}, {len(scored)} figures with what they are measured against; {odd[:2]}"
        )
        good &= told.get("verdict") in ("unexplained", "suspicious") and kept and bool(scored)
        good &= all(str(escape(e["figure"])) in page for e in scored[:3])
    return "; ".join(said), good
