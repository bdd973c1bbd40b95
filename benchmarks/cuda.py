#!/usr/bin/env python3
"""te_int8 on a GPU beside what a user could pick instead: bf16, FP8 rowwise, torch._int_mm, a copy of memory; and beside
cuBLASLt's products that leave int8 ("int8 out", its first four ways), which is what the GPU could do at best.

    python benchmarks/cuda.py build/lib/libte_int8.so [--section SECTION ...] [--json FILE]

Large products are bound by power, so the clock, and with it the order of timing, decides what looks fast. Every
candidate is therefore timed in random order in two states: cool (22 ms of rest, then one burst) and hot (50 ms of the
candidate itself, then one burst). A burst is a CUDA graph of calls that take turns at buffers larger than the L2 cache
together. The figures are medians; `again` is the first candidate of a table timed a second time under another name.
"""

import argparse
import json
import random
import statistics
import time

import torch

import cublaslt_int8

GEMM_SHAPES = [(8192, 4096, 4096), (8192, 14336, 4096), (8192, 4096, 14336), (8192, 8192, 8192), (16384, 4096, 1024),
               (2048, 4096, 4096)]
LINEAR_SHAPES = [(8192, 4096, 4096), (8192, 14336, 4096), (2048, 4096, 4096), (1024, 1024, 1024), (4096, 1024, 4096)]
DECODE_SHAPES = [(m, n, n) for n in (4096, 8192) for m in (1, 8, 16, 32, 64)]
# 3x3 of ResNet-50's stages: samples, side, channels, groups
CONVOLUTION_SHAPES = [(samples, side, channels, groups) for groups in ("one", "depthwise") for samples in (64, 256)
                      for side, channels in ((56, 64), (28, 128), (14, 256), (7, 512))]
QUANTIZE_SHAPES = [(8192, 4096), (16384, 4096), (8192, 16384), (8192, 768), (65536, 1024)]
ROTATED_BYTES = 256 << 20
ops = torch.ops.te_int8


def ms_of(graph):
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def capture(calls, count):
    """A graph of `count` calls that take turns."""
    for call in calls[:3]:  # whatever is chosen or allocated at the first call
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            calls[i % len(calls)]()
    return graph


def measure(candidates, rounds):
    """{name: [call, ...]} -> {name: (cool, hot)} in microseconds a call."""
    graphs = {}
    for name, calls in candidates.items():
        estimate = ms_of(capture(calls, len(calls))) / len(calls)
        count = max(len(calls), min(200, int(4 / max(estimate, 1e-3))))
        graphs[name] = (capture(calls, count), count)
    times = {name: ([], []) for name in graphs}
    for _ in range(rounds):
        for hot in (0, 1):
            names = list(graphs)
            random.shuffle(names)
            for name in names:
                graph, count = graphs[name]
                if hot:
                    spent = 0.0
                    while spent < 50:
                        spent += ms_of(graph)
                else:
                    torch.cuda.synchronize()
                    time.sleep(0.022)
                times[name][hot].append(ms_of(graph) * 1000 / count)
    return {name: tuple(statistics.median(t) for t in both) for name, both in times.items()}


def copies(bytes_of_one):
    return max(2, -(-ROTATED_BYTES // bytes_of_one))


def rotate(function, make, count):
    """`count` calls of function, each on its own result of make()."""
    def bind(arguments):
        return lambda: function(*arguments)
    return [bind(make()) for _ in range(count)]


def bf16(*sizes):
    return torch.randn(*sizes, device="cuda", dtype=torch.bfloat16)


def fp8_rows(x):
    scale = x.abs().amax(1, keepdim=True).float() / 448
    return (x / scale).to(torch.float8_e4m3fn), scale


def gemm(m, n, k):
    count = copies(m * k + n * k + 2 * m * n)
    bias = bf16(n)

    def codes():
        return (*ops.quantize_rows(bf16(m, k)), *ops.quantize_rows(bf16(n, k)))

    def fp8():
        (a, sa), (b, sb) = fp8_rows(bf16(m, k)), fp8_rows(bf16(n, k))
        return a, b.t(), sa, sb.t().contiguous()

    candidates = {
        "bf16": rotate(lambda x, w: torch.nn.functional.linear(x, w, bias), lambda: (bf16(m, k), bf16(n, k)), count),
        "te_int8": rotate(lambda a, sa, b, sb: ops.scaled_mm(a, b, sa, sb, bias, out_dtype=torch.bfloat16), codes, count),
        "fp8 rowwise": rotate(
            lambda a, b, sa, sb: torch._scaled_mm(
                a, b, scale_a=sa, scale_b=sb, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True), fp8,
            count),
    }
    product = cublaslt_int8.Product(m, n, k)
    for i, heuristic in enumerate(product.found[:4]):
        candidates[f"int8 out {i + 1}"] = rotate(
            lambda a, sa, b, sb, out, h=heuristic: product.run(h, a, b, out),
            lambda: (*codes(), torch.empty(m, n, device="cuda", dtype=torch.int8)), count)
    if m > 16:
        candidates["_int_mm"] = rotate(lambda a, sa, b, sb: torch._int_mm(a, b.t()), codes, count)
    candidates["again"] = candidates["bf16"]
    return candidates


def linear(m, n, k):
    count = copies(2 * m * k + n * k + 2 * m * n)
    bias = bf16(n)
    weights = [(w, *ops.quantize_rows(w)) for w in (bf16(n, k) for _ in range(count))]

    def ours(x, weight):
        return ops.linear_prequantized(x, weight[1], weight[2], bias)

    inputs = [(bf16(m, k), weight) for weight in weights]
    result = {
        "bf16": [lambda x=x, w=w: torch.nn.functional.linear(x, w[0], bias) for x, w in inputs],
        "te_int8": [lambda x=x, w=w: ours(x, w) for x, w in inputs],
    }
    result["again"] = result["bf16"]
    return result


def convolution(samples, side, channels, groups):
    """3x3 with padding 1, channels last; quantization of x and bias included, the weights' codes given."""
    torch.backends.cudnn.benchmark = True
    count = copies(4 * samples * side * side * channels)
    bias = bf16(channels)
    groups = channels if groups == "depthwise" else 1
    weight = bf16(channels, channels // groups, 3, 3).to(memory_format=torch.channels_last)
    weight_codes, weight_scales = ops.quantize_rows(weight.permute(0, 2, 3, 1).flatten(1))
    weight_codes = weight_codes.view(channels, 3, 3, channels // groups).permute(0, 3, 1, 2)

    def quantized(x):
        codes, scales = ops.quantize_rows(x.permute(0, 2, 3, 1).flatten(1))
        return codes.view(samples, side, side, channels).permute(0, 3, 1, 2), scales

    def multiply(codes, scales):
        return ops.scaled_convolution(
            codes, weight_codes, scales, weight_scales, bias, [1, 1], [1, 1], [1, 1], groups, out_dtype=torch.bfloat16)

    def values():
        return (bf16(samples, channels, side, side).to(memory_format=torch.channels_last),)

    result = {
        "bf16": rotate(lambda x: torch.nn.functional.conv2d(x, weight, bias, padding=1, groups=groups), values, count),
        "bf16 without bias": rotate(lambda x: torch.nn.functional.conv2d(x, weight, padding=1, groups=groups), values, count),
        "te_int8": rotate(lambda x: multiply(*quantized(x)), values, count),
        "quantization": rotate(quantized, values, count),
        "scaled_convolution": rotate(multiply, lambda: quantized(*values()), count),
    }
    result["again"] = result["bf16"]
    return result


def quantize(m, k):
    count = copies(3 * m * k)

    def copy(bytes_moved):
        half = bytes_moved // 2
        return rotate(lambda to, of: to.copy_(of),
                      lambda: (torch.empty(half, device="cuda", dtype=torch.uint8),
                               torch.randint(0, 255, (half,), device="cuda", dtype=torch.uint8)), count)

    values = lambda: (bf16(m, k),)
    return {
        "copy of 3 bytes": copy(3 * m * k),
        "quantize_rows": rotate(ops.quantize_rows, values, count),
        "quantize_columns": rotate(ops.quantize_columns, values, count),
        "copy of 4 bytes": copy(4 * m * k),
        "quantize_rows_and_columns": rotate(ops.quantize_rows_and_columns, values, count),
        "quantize_rows_and_columns, sums": rotate(
            lambda x: ops.quantize_rows_and_columns(x, column_sums=True), values, count),
        "copy of 2 bytes": copy(2 * m * k),
        "requantize_columns": rotate(ops.requantize_columns, lambda: ops.quantize_rows(bf16(m, k)), count),
        "dequantize": rotate(lambda codes, scales: ops.dequantize(codes, scales, out_dtype=torch.bfloat16),
                             lambda: ops.quantize_rows(bf16(m, k)), count),
        "again": copy(3 * m * k),
    }


SECTIONS = {"gemm": (gemm, GEMM_SHAPES), "linear": (linear, LINEAR_SHAPES), "decode": (linear, DECODE_SHAPES),
            "quantize": (quantize, QUANTIZE_SHAPES), "convolution": (convolution, CONVOLUTION_SHAPES)}


class Record:
    """What was measured, printed as it comes."""

    def __init__(self):
        self.content = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": []}
        print(self.content["device"], "torch", torch.__version__)

    def add(self, section, shape, times, missing=None):
        """times: {name: (cool, hot)} in microseconds, the first what the others are compared with; missing: {name: why}."""
        base = next(iter(times.values()))
        for name, reason in (missing or {}).items():
            self.content["rows"].append({"section": section, "shape": shape, "name": name, "missing": reason})
            print(f"{section:9} {str(shape):22} {name:25} {reason}", flush=True)
        for name, (cool, hot) in times.items():
            self.content["rows"].append({"section": section, "shape": shape, "name": name, "cool_us": cool, "hot_us": hot})
            print(f"{section:9} {str(shape):22} {name:25} {cool:9.1f} {hot:9.1f} us   "
                  f"x{base[0] / cool:.3f} x{base[1] / hot:.3f}", flush=True)

    def save(self, path):
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.content, file, indent=1)


def parser_of(description, rounds):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def begin(parser):
    """The options, with the library loaded."""
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("expected a CUDA GPU that torch can use, found none")
    torch.ops.load_library(options.library)
    torch.manual_seed(options.seed)
    random.seed(options.seed)
    return options


def main():
    parser = parser_of(__doc__, rounds=15)
    parser.add_argument("--section", action="append", choices=list(SECTIONS))
    options = begin(parser)
    record = Record()
    with torch.no_grad():
        for section in options.section or SECTIONS:
            make, shapes = SECTIONS[section]
            for shape in shapes:
                record.add(section, shape, measure(make(*shape), options.rounds))
                torch.cuda.empty_cache()
    if options.json:
        record.save(options.json)


if __name__ == "__main__":
    main()
