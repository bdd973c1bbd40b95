#!/usr/bin/env python3
"""A markdown table, and a plot on request, of the Linear benchmarks' JSON.

    te_int8_bench --benchmark_filter=^Linear --benchmark_format=json > linear.json
    peers.py --json peers.json
    report.py linear.json
    report.py peers.json --plot peers.png
    report.py cuda_peers.json --statistic hot

Times are in milliseconds, of cuda.py and cuda_peers.py in microseconds, either cool or hot. A candidate that ran in
several ways counts by its fastest. Every ratio is of two times of one file. The plot needs matplotlib.
"""

import argparse
import json
import pathlib
import re
import sys

LABELS = {"fp32": "fp32", "bf16": "bf16", "te_int8": "te_int8", "onnxruntime": "ONNX Runtime",
          "torchao": "torchao", "torchao int8": "torchao INT8", "torchao fp8": "torchao FP8", "bitsandbytes": "bitsandbytes",
          "fp8 rowwise": "FP8 rowwise"}
MILLISECONDS = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}
BENCHMARK = re.compile(r"Linear(Fp32|Bf16|Int8)/M:(\d+)/N:(\d+)/K:(\d+)")


def read_google_benchmark(content, statistic):
    """Of repetitions, which aggregates follow where asked for, the minimum or the median."""
    series = {}
    for row in content["benchmarks"]:
        match = BENCHMARK.match(row["name"])
        if match and row.get("run_type", "iteration") == "iteration" and not row.get("error_occurred"):
            peer = match[1].lower().replace("int8", "te_int8")
            times = series.setdefault(tuple(map(int, match.groups()[1:])), {}).setdefault(peer, [])
            times.append(row["real_time"] * MILLISECONDS[row["time_unit"]])

    def pick(times):
        return sorted(times)[(len(times) - 1) // 2 if statistic == "median" else 0]

    return {shape: {peer: pick(times) for peer, times in row.items()} for shape, row in series.items()}


def read_peers(content, statistic):
    table = {}
    for row in content["peers"]:
        cells = table.setdefault(tuple(row["shape"]), {})
        value, known = row.get("missing") or row[f"{statistic}_ms"], cells.get(row["peer"])
        if not isinstance(known, float) or (isinstance(value, float) and value < known):
            cells[row["peer"]] = value
    return table


def read_cuda(content, statistic):
    table = {}
    for row in content["rows"]:
        cells = table.setdefault(tuple(row["shape"]), {})
        cells[row["name"]] = "refuses" if "missing" in row else row[f"{statistic}_us"]
    return table


def read(path, statistic="min"):
    """Returns {(M, N, K): {peer: time, or a word for why there is none}} in the order of the file."""
    try:
        content = json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: {error}")
    for key, reader in (("peers", read_peers), ("benchmarks", read_google_benchmark), ("rows", read_cuda)):
        if key in content:
            if (statistic in ("cool", "hot")) != (key == "rows"):
                sys.exit(f"{path}: expected --statistic cool or hot for a GPU's times, min or median for others, got {statistic}")
            table = reader(content, statistic)
            if table:
                return table
    sys.exit(f"{path}: expected the JSON of peers.py, cuda_peers.py, cuda.py, or of te_int8_bench with its Linear benchmarks")


def peers_of(table):
    return [peer for peer in LABELS if any(peer in row for row in table.values())]


def base_of(table):
    """What speeds are relative to."""
    return "fp32" if "fp32" in peers_of(table) else "bf16"


def ratio(row, peer, to):
    """How many times faster `peer` is than `to`, or None."""
    times = row.get(peer), row.get(to)
    return times[1] / times[0] if all(isinstance(t, float) for t in times) else None


def markdown(table):
    peers = peers_of(table)
    others = [peer for peer in peers if peer != "te_int8"]
    lines = ["| M, N, K | " + " | ".join(LABELS[p] for p in peers) +
             "".join(f" | of {LABELS[p]}" for p in others) + " |",
             "|---" * (1 + len(peers) + len(others)) + "|"]
    for shape, row in table.items():
        cells = [", ".join(map(str, shape))]
        for peer in peers:
            value = row.get(peer, "-")
            cells.append(value if not isinstance(value, float) else f"{value:.0f}" if value >= 100 else f"{value:.2f}")
        for peer in others:
            value = ratio(row, "te_int8", peer)
            cells.append("-" if value is None else f"{value:.1f}" if value >= 5 else f"{value:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(table, output, title):
    """Speed relative to the base, one group of bars per shape."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    base = base_of(table)
    peers = [peer for peer in peers_of(table) if peer != base]
    figure, axes = pyplot.subplots(figsize=(8, 3.5), layout="constrained")
    width = 0.8 / max(1, len(peers))
    for index, peer in enumerate(peers):
        offset = (index - (len(peers) - 1) / 2) * width
        points = [(x + offset, ratio(row, peer, base)) for x, row in enumerate(table.values())]
        points = [(x, speed) for x, speed in points if speed is not None]
        if points:
            axes.bar(*zip(*points, strict=True), width, label=LABELS[peer], color=f"C{index}")
    axes.axhline(1, color="black", lw=0.8)
    axes.set_xticks(range(len(table)), ["\n".join(map(str, shape)) for shape in table], fontsize=8)
    axes.set_xlabel("M, N, K")
    axes.set_ylabel(f"speed, {base} = 1")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=len(peers), title=title)
    figure.savefig(output, dpi=100)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=pathlib.Path)
    parser.add_argument("--statistic", choices=("min", "median", "cool", "hot"), default="min")
    parser.add_argument("--plot", type=pathlib.Path, metavar="PNG")
    parser.add_argument("--title", default="Linear forward, quantization of x and bias included")
    arguments = parser.parse_args()
    table = read(arguments.json, arguments.statistic)
    print(markdown(table))
    if arguments.plot:
        draw(table, arguments.plot, arguments.title)
        print(f"Written: {arguments.plot}")


if __name__ == "__main__":
    main()
