#!/usr/bin/env python3
"""Draws the loss curves of train_text or pronounce: a --csv file, or --compare's curves.csv.

    plot_curves.py train_text_compare/curves.csv -o curves.png

Several files may be given; each run in them (the column "run", if there is one) gets one colour, its
validation loss a solid line and its training loss a dotted one. Needs matplotlib.
"""

import argparse
import csv
import pathlib
import sys


def read_runs(path):
    """Returns {run name: {column: values}} in the order of the file."""
    runs = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            name = row.pop("run", None) or pathlib.Path(path).stem
            columns = runs.setdefault(name, {})
            for column, value in row.items():
                columns.setdefault(column, []).append(float(value))
    missing = {"tokens", "train_loss", "val_loss"}
    for columns in runs.values():
        missing -= columns.keys()
    if not runs or missing:
        sys.exit(f"{path}: expected rows with the columns tokens, train_loss and val_loss")
    return runs


def differences_to_first(runs):
    """Validation loss minus the first run's, where both were evaluated: {run name: (tokens, values)}."""
    (_, reference), *others = runs.items()
    at = dict(zip(reference["tokens"], reference["val_loss"]))
    differences = {}
    for name, run in others:
        points = [(t, loss - at[t]) for t, loss in zip(run["tokens"], run["val_loss"]) if t in at]
        if points:
            differences[name] = tuple(zip(*points))
    return differences


def draw(runs, output, title):
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot, ticker

    differences = differences_to_first(runs)
    panels = 2 if differences else 1
    figure, axes = pyplot.subplots(
        panels, 1, sharex=True, squeeze=False, figsize=(8, 2 + 2.5 * panels), layout="constrained",
        gridspec_kw={"height_ratios": [3, 1][:panels]})
    losses, lowest = axes[0, 0], axes[-1, 0]
    colors = {name: f"C{index}" for index, name in enumerate(runs)}
    for name, run in runs.items():
        style = {"color": colors[name]}
        losses.plot(run["tokens"], run["val_loss"], marker=".", label=f"{name}, validation", **style)
        losses.plot(run["tokens"], run["train_loss"], ls=":", label=f"{name}, training", **style)
    losses.set_title(title)
    losses.set_ylabel("loss, nats")
    for name, (tokens, values) in differences.items():
        label = f"{name} minus {next(iter(runs))}, validation"
        lowest.plot(tokens, values, color=colors[name], marker=".", label=label)
        lowest.set_ylabel("difference")
    if differences:
        lowest.axhline(0, color="black", lw=0.8)
    for panel in axes[:, 0]:
        panel.legend()
        panel.grid(alpha=0.3)
    lowest.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    lowest.set_xlabel("tokens trained on")
    figure.savefig(output, dpi=120)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", nargs="+", type=pathlib.Path)
    parser.add_argument("-o", "--output", type=pathlib.Path, help="a PNG; default: beside the first CSV")
    parser.add_argument("--title", default="")
    arguments = parser.parse_args()
    runs = {}
    for path in arguments.csv:
        try:
            runs.update(read_runs(path))
        except (OSError, ValueError) as error:
            sys.exit(f"{path}: {error}")
    output = arguments.output or arguments.csv[0].with_suffix(".png")
    draw(runs, output, arguments.title)
    print(f"Written: {output}")


if __name__ == "__main__":
    main()
