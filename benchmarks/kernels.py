#!/usr/bin/env python3
"""Where the time of a training step goes on the GPU: a Markdown table of the traces that te_int8_bench writes.

    mkdir traces
    TE_INT8_BENCH_TRACES=traces build/bin/te_int8_bench --benchmark_filter=TrainBlocks
    python benchmarks/kernels.py traces/TrainBlocks_bf16.json traces/TrainBlocks_int8.json [--steps 3]

A column for each trace, in microseconds a step (and calls a step). Kernels are put together by what they do.
Multiplications by a number are left out: they stand for an optimizer, between the steps.
"""

import argparse
import collections
import json
import pathlib
import re

# The first that is found in a kernel's name tells what it does.
GROUPS = [
    (r"cutlass", "product in INT8"),
    (r"imma|s8", "product in INT8 by cuBLASLt"),
    (r"nvjet|cublas|gemm", "product in bf16"),
    (r"sdpa|flash|compute_dot_do_o|convert_dq", "attention"),
    (r"te_int8::.*?(activate_rows|activate_pieces)", "GELU with codes, and codes made again"),
    (r"te_int8::.*?(gradients_by_parts)", "GELU's backward with codes of dy"),
    (r"te_int8::.*?(normalize_rows)", "codes of LayerNorm"),
    (r"te_int8::.*?(rows_and_maxima|codes_by_tiles|sums_by_tiles|sums_of_tiles)", "codes of dy by row and by column, sums for the bias"),
    (r"te_int8::.*?(quantize_by_tiles|columns_in_clusters)", "codes by column of x and W"),
    (r"te_int8::.*?(rows_on_chip|rows_on_clusters|rows_in_two_passes)", "codes by row"),
    (r"te_int8::.*?(values_of_codes)", "values of codes"),
    (r"te_int8::kernels::(?:\(anonymous namespace\)::)?(\w+)", "te_int8"),
    (r"layer_norm|GammaBeta", "LayerNorm and its backward"),
    (r"Gelu", "GELU and its backward"),
    (r"CUDAFunctor_add|CUDAFunctorOnSelf_add", "additions"),
    (r"reduce_kernel", "sums"),
    (r"direct_copy|CatArray|Memcpy", "copies"),
    (r"Fill|Memset", "fills"),
]


def group_of(name):
    for pattern, group in GROUPS:
        if re.search(pattern, name):
            return group
    return "other"


def read(path, steps):
    """{group: (microseconds a step, calls a step)}"""
    time, calls = collections.Counter(), collections.Counter()
    for event in json.loads(path.read_text())["traceEvents"]:
        if event.get("cat") not in ("kernel", "gpu_memcpy", "gpu_memset"):
            continue
        if "AUnaryFunctor" in event["name"] or "MulFunctor" in event["name"]:
            continue
        group = group_of(event["name"])
        time[group] += event["dur"] / steps
        calls[group] += 1 / steps
    return {group: (time[group], calls[group]) for group in time}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="+", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=3, help="in a trace (default: %(default)s)")
    arguments = parser.parse_args()
    columns = [read(path, arguments.steps) for path in arguments.traces]
    names = [path.stem for path in arguments.traces]
    groups = sorted({group for column in columns for group in column},
                    key=lambda group: -max(column.get(group, (0, 0))[0] for column in columns))
    print("| | " + " | ".join(names) + " |")
    print("|---|" + "---:|" * len(names))
    for group in groups:
        cells = (f"{column[group][0]:,.0f} ({column[group][1]:.0f})" if group in column else "" for column in columns)
        print(f"| {group} | " + " | ".join(cells) + " |")
    totals = (f"{sum(time for time, _ in column.values()):,.0f}" for column in columns)
    print("| all | " + " | ".join(totals) + " |")


if __name__ == "__main__":
    main()
