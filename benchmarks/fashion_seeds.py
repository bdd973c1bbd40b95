#!/usr/bin/env python3
"""Trains examples/fashion's models with several seeds, each in full precision and by QAT, and makes one table and one plot of it.

    python benchmarks/fashion_seeds.py build/bin/fashion --out DIR [--models resnet vit] [--seeds 1 2 3] [--jobs 1]
        -- --size large

What follows -- goes to fashion, with --compare. Runs that DIR already holds, by the same command, are not done again. Several --jobs at once share the
GPU: the accuracies are the same. DIR gets table.md, accuracies.csv and accuracies.png.
"""

import seeds

TITLES = {"resnet": "ResNet", "vit": "ViT"}
PRECISIONS = ("full precision", "INT8")  # evaluated in
REFERENCE = ("full precision", "full precision")  # trained by, evaluated in


def run(model, seed, arguments):
    """{(trained, evaluated): accuracy}"""
    folder = arguments.out / f"{model}_{seed}"
    command = [arguments.program, "--compare", "--model", model, "--seed", str(seed), "--out", str(folder), *arguments.program_arguments]
    rows = seeds.run(command, folder, folder / "compare.csv")
    return {(row["trained"], row["evaluated"]): float(row["test_accuracy"]) for row in rows}


def table(runs):
    """Differences are taken seed by seed, from the model trained and evaluated in full precision."""
    lines = ["| model | trained | evaluated | test accuracy, %, mean | standard deviation | minus full precision, mean | standard deviation |",
             "|---|---|---|---:|---:|---:|---:|"]
    for model, of_seeds in runs.items():
        for way in of_seeds[0]:
            mean, deviation = seeds.mean_and_deviation([accuracies[way] for accuracies in of_seeds])
            difference, spread = seeds.mean_and_deviation([accuracies[way] - accuracies[REFERENCE] for accuracies in of_seeds])
            compared = " | " if way == REFERENCE else f"{difference:+.2f} | {spread:.2f}"
            lines.append(f"| {TITLES[model]} | {way[0]} | {way[1]} | {mean:.2f} | {deviation:.2f} | {compared} |")
    return "\n".join(lines)


def rows_of_runs(runs, numbers):
    for model, of_seeds in runs.items():
        for seed, accuracies in zip(numbers, of_seeds):
            yield from ([model, seed, *way, accuracy] for way, accuracy in accuracies.items())


def plot(runs, pyplot):
    """A panel for each model: every seed a point, the mean a line."""
    figure, panels = pyplot.subplots(1, len(runs), figsize=(1 + 3.5 * len(runs), 3.8), layout="constrained", squeeze=False)
    for panel, (model, of_seeds) in zip(panels[0], runs.items()):
        trained = list(dict.fromkeys(way[0] for way in of_seeds[0]))
        for color, evaluated in enumerate(PRECISIONS):
            for column, name in enumerate(trained):
                x = column + 0.3 * (color - 0.5)
                values = [accuracies[name, evaluated] for accuracies in of_seeds]
                panel.plot([x] * len(values), values, "o", color=f"C{color}", alpha=0.5)
                panel.hlines(seeds.mean_and_deviation(values)[0], x - 0.12, x + 0.12, color=f"C{color}",
                             label=None if column else f"evaluated in {evaluated}")
        panel.set(title=TITLES[model], ylabel="test accuracy, %", xlim=(-0.5, len(trained) - 0.5))
        panel.set_xticks(range(len(trained)), [f"trained: {name}" for name in trained])
        panel.grid(axis="y", alpha=0.3)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def main():
    arguments = seeds.parse(__doc__, lambda parser: parser.add_argument("--models", nargs="+", choices=TITLES, default=list(TITLES)))
    runs = seeds.run_all(lambda model, seed: run(model, seed, arguments), arguments.models, arguments)
    header = ["model", "seed", "trained", "evaluated", "test_accuracy"]
    seeds.write_csv(arguments.out / "accuracies.csv", header, rows_of_runs(runs, arguments.seeds))
    seeds.tell(table(runs), lambda pyplot: plot(runs, pyplot), arguments.out, "accuracies.png")


if __name__ == "__main__":
    main()
