#!/usr/bin/env python3
"""Trains examples/train_text or examples/pronounce by several recipes with several seeds, and makes tables and a plot of it.

    python benchmarks/recipe_seeds.py build/bin/train_text --out DIR [--metrics val_loss] [--recipes none qat switchback int8]
        [--seeds 1 2 3] [--jobs 1] -- --size large --bf16 --sample 0
    python benchmarks/recipe_seeds.py build/bin/pronounce --out DIR --metrics per wer -- --size large

What follows -- goes to the program. Metrics are columns of its --csv. Runs that DIR already holds, by the same command, are not done again. Several
--jobs at once share the GPU: the metrics are the same, the speed is not worth reading, and the table leaves it out. DIR gets table.md, table.csv and
curves.png.
"""

import statistics

import seeds

RECIPES = {"none": "full precision", "qat": "QAT", "switchback": "SwitchBack", "int8": "INT8 training"}
METRICS = {"val_loss": ("validation loss", 4), "per": ("phoneme error rate, %", 2), "wer": ("word error rate, %", 2)}


def run(recipe, seed, arguments):
    """The rows of the run's CSV."""
    path = arguments.out / f"{recipe}_{seed}.csv"
    command = [arguments.program, "--recipe", recipe, "--seed", str(seed), "--csv", str(path), *arguments.program_arguments]
    return [{name: float(value) for name, value in row.items()} for row in seeds.run(command, path, path)]


def speed_and_peak(of_seeds):
    speed = statistics.median(row["tokens_per_second"] for rows in of_seeds for row in rows)
    return speed, max(row["peak_mb"] for rows in of_seeds for row in rows)


def table(runs, metrics, with_speed):
    """Of each recipe the last evaluations' mean over seeds, their standard deviation, and what differs from full precision's mean."""
    headings = ["recipe"]
    for metric in metrics:
        headings += [f"{METRICS[metric][0]}, mean", "standard deviation", "minus full precision"]
    headings += ["tokens / s", "peak MB"]
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1)]
    for recipe, of_seeds in runs.items():
        cells = [RECIPES[recipe]]
        for metric in metrics:
            digits = METRICS[metric][1]
            mean, deviation = seeds.mean_and_deviation([rows[-1][metric] for rows in of_seeds])
            full = [rows[-1][metric] for rows in runs.get("none", [])]
            cells += [f"{mean:.{digits}f}", f"{deviation:.{digits}f}", f"{mean - statistics.mean(full):+.{digits}f}" if full else ""]
        speed, peak = speed_and_peak(of_seeds)
        lines.append(cells + [f"{speed:,.0f}" if with_speed else "", f"{peak:,.0f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def last_rows(runs, numbers, metrics):
    """A row for each run, with its last evaluation."""
    for recipe, of_seeds in runs.items():
        for seed, rows in zip(numbers, of_seeds):
            yield [recipe, seed, *(rows[-1][metric] for metric in metrics), *speed_and_peak([rows])]


def plot(runs, metrics, pyplot):
    """A panel for each metric: the mean over seeds a line, their range around it."""
    figure, panels = pyplot.subplots(1, len(metrics), squeeze=False, figsize=(7 * len(metrics), 4.2), layout="constrained")
    for metric, axes in zip(metrics, panels[0]):
        for recipe, of_seeds in runs.items():
            tokens = [row["tokens"] / 1e6 for row in of_seeds[0]]
            values = list(zip(*([row[metric] for row in rows] for rows in of_seeds)))
            line, = axes.plot(tokens, [statistics.mean(of_step) for of_step in values], label=RECIPES[recipe])
            axes.fill_between(tokens, [min(v) for v in values], [max(v) for v in values], color=line.get_color(), alpha=0.2)
        axes.set(xlabel="million tokens", ylabel=METRICS[metric][0], yscale="log")
        for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            set_formatter("{x:.1f}")
        axes.legend()
    return figure


def add_arguments(parser):
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=["val_loss"])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))


def main():
    arguments = seeds.parse(__doc__, add_arguments)
    metrics = arguments.metrics
    runs = seeds.run_all(lambda recipe, seed: run(recipe, seed, arguments), arguments.recipes, arguments)
    header = ["recipe", "seed", *metrics, "tokens_per_second", "peak_mb"]
    seeds.write_csv(arguments.out / "table.csv", header, last_rows(runs, arguments.seeds, metrics))
    seeds.tell(table(runs, metrics, arguments.jobs == 1), lambda pyplot: plot(runs, metrics, pyplot), arguments.out, "curves.png")


if __name__ == "__main__":
    main()
