#!/usr/bin/env python3
"""Trains examples/train_text by several recipes with several seeds, and makes one table and one plot of it.

    python benchmarks/train_text_seeds.py build/bin/train_text --out DIR [--recipes none qat switchback int8]
        [--seeds 1 2 3] [--jobs 1] -- --size large --bf16

What follows -- goes to train_text. Runs that DIR already holds, by the same command, are not done again. Several --jobs at once share the GPU: the
losses are the same, the speed is not worth reading, and the table leaves it out.
"""

import statistics

import seeds

TITLES = {"none": "full precision", "qat": "QAT", "switchback": "SwitchBack", "int8": "INT8 training"}


def run(recipe, seed, arguments):
    """The rows of the run's CSV."""
    path = arguments.out / f"{recipe}_{seed}.csv"
    command = [arguments.program, "--recipe", recipe, "--seed", str(seed), "--csv", str(path), "--sample", "0", *arguments.program_arguments]
    return [{name: float(value) for name, value in row.items()} for row in seeds.run(command, path, path)]


def table(runs, with_speed):
    full = seeds.mean_and_deviation([rows[-1]["val_loss"] for rows in runs["none"]]) if "none" in runs else None
    lines = ["| recipe | validation loss, mean | standard deviation | minus full precision | tokens / s | peak MB |",
             "|---|---:|---:|---:|---:|---:|"]
    for recipe, of_seeds in runs.items():
        loss, deviation = seeds.mean_and_deviation([rows[-1]["val_loss"] for rows in of_seeds])
        difference = f"{loss - full[0]:+.4f}" if full else ""
        speed = statistics.median(row["tokens_per_second"] for rows in of_seeds for row in rows)
        peak = max(row["peak_mb"] for rows in of_seeds for row in rows)
        lines.append(f"| {TITLES[recipe]} | {loss:.4f} | {deviation:.4f} | {difference} | "
                     f"{f'{speed:,.0f}' if with_speed else ''} | {peak:,.0f} |")
    return "\n".join(lines)


def plot(runs, pyplot):
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for recipe, of_seeds in runs.items():
        tokens = [row["tokens"] / 1e6 for row in of_seeds[0]]
        losses = list(zip(*([row["val_loss"] for row in rows] for rows in of_seeds)))
        line, = axes.plot(tokens, [statistics.mean(values) for values in losses], label=TITLES[recipe])
        axes.fill_between(tokens, [min(v) for v in losses], [max(v) for v in losses], color=line.get_color(), alpha=0.2)
    axes.set(xlabel="million tokens", ylabel="validation loss, nats per byte", yscale="log")
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter("{x:.1f}")
    axes.legend()
    return figure


def main():
    arguments = seeds.parse(__doc__, lambda parser: parser.add_argument("--recipes", nargs="+", choices=TITLES, default=list(TITLES)))
    runs = seeds.run_all(lambda recipe, seed: run(recipe, seed, arguments), arguments.recipes, arguments)
    seeds.tell(table(runs, arguments.jobs == 1), lambda pyplot: plot(runs, pyplot), arguments.out, "curves.png")


if __name__ == "__main__":
    main()
