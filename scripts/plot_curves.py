#!/usr/bin/env python3
"""Draws the loss curves of train_text: its --csv file, or --compare's curves.csv.

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


def draw(runs, output, title):
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    figure, (losses, differences) = pyplot.subplots(
        2, 1, sharex=True, figsize=(8, 7), height_ratios=[3, 1], layout="constrained")
    names = list(runs)
    reference = runs[names[0]]
    for index, name in enumerate(names):
        run = runs[name]
        color = f"C{index}"
        losses.plot(run["tokens"], run["val_loss"], color=color, marker=".", label=f"{name}, validation")
        losses.plot(run["tokens"], run["train_loss"], color=color, ls=":", label=f"{name}, training")
        if index > 0 and run["tokens"] == reference["tokens"]:
            difference = [a - b for a, b in zip(run["val_loss"], reference["val_loss"])]
            differences.plot(run["tokens"], difference, color=color, marker=".",
                             label=f"{name} minus {names[0]}, validation")
    losses.set_ylabel("loss, nats per byte")
    losses.legend()
    losses.grid(alpha=0.3)
    if title:
        losses.set_title(title)
    lower = losses
    if differences.lines:
        differences.axhline(0, color="black", lw=0.8)
        differences.set_ylabel("difference")
        differences.legend()
        differences.grid(alpha=0.3)
        lower = differences
    else:
        differences.remove()
        losses.tick_params(labelbottom=True)
    lower.set_xlabel("tokens trained on")
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
