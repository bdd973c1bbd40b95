#!/usr/bin/env python3
"""What te_int8::Diagnostics has written, as a Markdown table and a plot.

    python benchmarks/diagnostics.py diagnostics.csv [--plot FILE.png]

A row a layer: the median signal-to-quantization-noise ratio of its codes in decibels, the median share of zero codes, and of the
cosines of its gradients with the exact ones the median and the worst. The plot has a line a layer over the steps.
"""

import argparse
import collections
import csv
import statistics
import sys

CODES = ["x", "weight", "dy_rows", "dy_columns"]
GRADIENTS = ["dx", "dweight"]


def read(path):
    """{(layer, tensor): [{"step": ..., "sqnr_db": ..., ...}, ...]}, layers in the order of their first call."""
    with open(path) as file:
        rows = list(csv.DictReader(file))
    lines = collections.defaultdict(list)
    for row in rows:
        values = {name: float(row[name]) for name in ("step", "sqnr_db", "zero_codes", "cosine") if row[name]}
        lines[row["layer"], row["tensor"]].append(values)
    return lines


def cell(lines, layer, tensor, name, summarize, digits):
    values = [line[name] for line in lines.get((layer, tensor), []) if name in line]
    return f"{summarize(values):.{digits}f}" if values else ""


def table(lines):
    layers = list(dict.fromkeys(layer for layer, _ in lines))
    titles = ([f"{tensor}, dB" for tensor in CODES] + [f"{tensor}, zeros" for tensor in CODES] +
              [f"{tensor}, cosine {which}" for tensor in GRADIENTS for which in ("median", "worst")])
    result = ["| layer | " + " | ".join(titles) + " |", "|---|" + "---:|" * len(titles)]
    for layer in layers:
        cells = [cell(lines, layer, tensor, "sqnr_db", statistics.median, 1) for tensor in CODES]
        cells += [cell(lines, layer, tensor, "zero_codes", statistics.median, 3) for tensor in CODES]
        for tensor in GRADIENTS:
            cells += [cell(lines, layer, tensor, "cosine", of, 4) for of in (statistics.median, min)]
        result.append(f"| {layer} | " + " | ".join(cells) + " |")
    return "\n".join(result)


def plot(lines, path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [(tensor, "sqnr_db", "dB") for tensor in CODES] + [(tensor, "cosine", "cosine") for tensor in GRADIENTS]
    panels = [panel for panel in panels if any(tensor == panel[0] for _, tensor in lines)]
    layers = list(dict.fromkeys(layer for layer, _ in lines))
    figure, axes = plt.subplots(-(-len(panels) // 2), 2, figsize=(11, 3 * -(-len(panels) // 2)), layout="constrained",
                                squeeze=False)
    colors = matplotlib.colormaps["viridis"]
    for (tensor, name, unit), ax in zip(panels, axes.flat):
        for i, layer in enumerate(layers):
            points = [(line["step"], line[name]) for line in lines.get((layer, tensor), []) if name in line]
            if points:
                ax.plot(*zip(*points), color=colors(i / max(1, len(layers) - 1)), linewidth=1, label=layer)
        ax.set(title=tensor, xlabel="step", ylabel=unit)
    for ax in list(axes.flat)[len(panels):]:
        ax.axis("off")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside right upper", fontsize=6)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv")
    parser.add_argument("--plot")
    arguments = parser.parse_args()
    lines = read(arguments.csv)
    if not lines:
        sys.exit(f"{arguments.csv}: expected rows, got none")
    print(table(lines))
    if arguments.plot:
        plot(lines, arguments.plot)


if __name__ == "__main__":
    main()
