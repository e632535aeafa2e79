"""Embedding descriptions: ours against sentence-transformers with the same model, in turns.

    python benchmarks/encoding.py                # one thread, one text at a time, as a service asks
    python benchmarks/encoding.py --batch 32 --threads 2

Prints medians, their ratio, and the largest difference of any number. Texts are the shipped zoo's descriptions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np
import torch

from comgrad.describe.encoder import DEFAULT_ENCODER, SentenceEncoder, TextEncoder, load_encoder
from comgrad.weights.bases import resolve_base
from comgrad.workflows.demo import starter


def main() -> None:
    """Measure both, text by text, so that what slows the machine slows both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1, help="texts at a time (1)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (1)")
    parser.add_argument("--repeats", type=int, default=3, help="times that each text is embedded (3)")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    texts = sorted(json.loads(p.read_text())["description"] for p in starter("zoo").glob("*/task_card.json"))
    batches = [texts[i : i + asked.batch] for i in range(0, len(texts), asked.batch)] * asked.repeats
    arms: dict[str, TextEncoder] = {
        "comgrad": load_encoder(),
        "sentence-transformers": SentenceEncoder("theirs", str(resolve_base(DEFAULT_ENCODER).path)),
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    apart = 0.0
    for number, batch in enumerate([batches[0], *batches]):
        rows = []
        for name, encoder in arms.items():
            began = time.perf_counter()
            rows.append(encoder.encode(batch))
            if number:  # the first one is for warming up
                times[name].append(1000 * (time.perf_counter() - began) / len(batch))
        apart = max(apart, float(np.abs(rows[0] - rows[1]).max()))
    medians = {name: statistics.median(t) for name, t in times.items()}
    print(f"{len(texts)} descriptions, {asked.batch} at a time, threads: {asked.threads}")
    for name, median in medians.items():
        print(f"{name:22} {median:7.2f} ms a text (median of {len(times[name])})")
    ours, theirs = medians["comgrad"], medians["sentence-transformers"]
    print(f"ratio {theirs / ours:.2f}; largest difference of a number {apart:.1e}")


if __name__ == "__main__":
    main()
