#!/usr/bin/env python3
"""Trains examples/train_text by several recipes with several seeds, and makes one table and one plot of it.

    python benchmarks/train_text_seeds.py build/bin/train_text --out DIR [--recipes none qat switchback int8]
        [--seeds 1 2 3] [--jobs 1] -- --size large --bf16

What follows -- goes to train_text. Runs that DIR already holds, by the same command, are not done again. Several --jobs at once share the GPU: the
losses are the same, the speed is not worth reading, and the table leaves it out.
"""

import argparse
import concurrent.futures
import csv
import pathlib
import shlex
import statistics
import subprocess
import sys

TITLES = {"none": "full precision", "qat": "QAT", "switchback": "SwitchBack", "int8": "INT8 training"}


def run(program, recipe, seed, out, arguments):
    """The rows of the run's CSV."""
    path = out / f"{recipe}_{seed}.csv"
    done = path.with_suffix(".command")
    command = [program, "--recipe", recipe, "--seed", str(seed), "--csv", str(path), "--sample", "0", *arguments]
    if not done.exists() or done.read_text() != shlex.join(command):
        done.unlink(missing_ok=True)
        with open(path.with_suffix(".log"), "w") as log:
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
        if code != 0:
            raise RuntimeError(f"{shlex.join(command)}: expected exit status 0, got {code}; see {path.with_suffix('.log')}")
        done.write_text(shlex.join(command))
    with open(path) as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def mean_and_deviation(values):
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def table(runs, with_speed):
    full = mean_and_deviation([rows[-1]["val_loss"] for rows in runs["none"]]) if "none" in runs else None
    lines = ["| recipe | validation loss, mean | standard deviation | minus full precision | tokens / s | peak MB |",
             "|---|---:|---:|---:|---:|---:|"]
    for recipe, of_seeds in runs.items():
        loss, deviation = mean_and_deviation([rows[-1]["val_loss"] for rows in of_seeds])
        difference = f"{loss - full[0]:+.4f}" if full else ""
        speed = statistics.median(row["tokens_per_second"] for rows in of_seeds for row in rows)
        peak = max(row["peak_mb"] for rows in of_seeds for row in rows)
        lines.append(f"| {TITLES[recipe]} | {loss:.4f} | {deviation:.4f} | {difference} | "
                     f"{f'{speed:,.0f}' if with_speed else ''} | {peak:,.0f} |")
    return "\n".join(lines)


def plot(runs, path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for recipe, of_seeds in runs.items():
        tokens = [row["tokens"] / 1e6 for row in of_seeds[0]]
        losses = list(zip(*([row["val_loss"] for row in rows] for rows in of_seeds)))
        line, = axes.plot(tokens, [statistics.mean(values) for values in losses], label=TITLES[recipe])
        axes.fill_between(tokens, [min(v) for v in losses], [max(v) for v in losses], color=line.get_color(), alpha=0.2)
    axes.set(xlabel="million tokens", ylabel="validation loss, nats per byte", yscale="log")
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter("{x:.1f}")
    axes.legend()
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--recipes", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1)
    words = sys.argv[1:] + ([] if "--" in sys.argv else ["--"])
    end = words.index("--")
    arguments = parser.parse_args(words[:end])
    arguments.out.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        runs = {recipe: [pool.submit(run, arguments.program, recipe, seed, arguments.out, words[end + 1:])
                         for seed in arguments.seeds] for recipe in arguments.recipes}
        runs = {recipe: [future.result() for future in futures] for recipe, futures in runs.items()}
    text = table(runs, arguments.jobs == 1)
    (arguments.out / "table.md").write_text(text + "\n")
    print(text)
    try:
        plot(runs, arguments.out / "curves.png")
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)


if __name__ == "__main__":
    main()
