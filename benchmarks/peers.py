#!/usr/bin/env python3
"""A quantized Linear forward on the CPU beside what others offer, all in one run.

    peers.py --threads 2 --json peers.json

fp32, bf16    torch.nn.functional.linear; for bf16 x, weight and result are bf16
te_int8       torch.ops.te_int8.linear_prequantized, weights quantized before
onnxruntime   DynamicQuantizeMatMul on preallocated outputs, a pass being one run of one graph, its threads
              spinning between calls and not; x with one scale for the whole tensor, the others one per row
torchao       Int8DynamicActivationInt8WeightConfig on a Linear, eager and by torch.compile

Each takes and gives fp32 (but bf16), quantizes x in the time measured, and adds a bias. Each result is
compared with fp32's before anything is timed. The candidates take turns in a random order, several passes a
turn, and rest between turns, as the threads of the last one may still be spinning. With M up to 16 a pass goes through
several weights, so that they come from memory; its time is divided by their number. What is not installed
is said to be so. benchmarks/requirements.txt names what is needed, report.py makes a table and a plot of
the JSON.
"""

import argparse
import dataclasses
import gc
import importlib
import json
import pathlib
import platform
import random
import statistics
import sys
import time

import torch

SHAPES = ("128,1024,1024", "512,1024,1024", "512,4096,1024", "512,1024,4096", "2048,384,384",
          "2048,1536,384", "16,4096,4096", "1,4096,4096")
COLD_ROWS = 16
COLD_BYTES = 256 << 20  # of INT8 weights, much more than a last-level cache holds
REST_SECONDS = 0.15  # ONNX Runtime's threads spin for 0.12 s after a call
TURN_SECONDS = 0.03
ERROR_BOUND = 0.03  # of the norm; INT8 on normally distributed numbers gives 0.01, bf16 less


class Missing(Exception):
    """Why a candidate cannot take part."""


@dataclasses.dataclass
class Problem:
    x: torch.Tensor
    weights: list[torch.Tensor]
    biases: list[torch.Tensor]

    @staticmethod
    def of(m, n, k):
        count = max(2, COLD_BYTES // (n * k)) if m <= COLD_ROWS else 1
        weights = [torch.randn(n, k) / k**0.5 for _ in range(count)]
        return Problem(torch.randn(m, k), weights, [torch.randn(n) for _ in range(count)])


def need(module):
    try:
        return importlib.import_module(module)
    except ImportError:
        raise Missing("not installed") from None


# A candidate is a function of a problem; it returns one that makes a pass and gives one result per weight.


def fp32(problem):
    pairs = list(zip(problem.weights, problem.biases, strict=True))
    return lambda: [torch.nn.functional.linear(problem.x, w, b) for w, b in pairs]


def bf16(problem):
    x = problem.x.bfloat16()
    pairs = [(w.bfloat16(), b.bfloat16()) for w, b in zip(problem.weights, problem.biases, strict=True)]
    return lambda: [torch.nn.functional.linear(x, w, b) for w, b in pairs]


def te_int8(problem):
    try:
        linear = torch.ops.te_int8.linear_prequantized.default
    except AttributeError:
        raise Missing("not built") from None
    layers = [(*torch.ops.te_int8.quantize_rows(w), b)
              for w, b in zip(problem.weights, problem.biases, strict=True)]
    return lambda: [linear(problem.x, codes, scales, b) for codes, scales, b in layers]


def onnx_model(problem):
    """One DynamicQuantizeMatMul per weight: int8 codes [K,N], one scale per column; all take the input A."""
    onnx, numpy = need("onnx"), need("numpy")
    tensor, real = onnx.numpy_helper.from_array, onnx.TensorProto.FLOAT
    nodes, constants, results = [], [], []
    for i, (weight, bias) in enumerate(zip(problem.weights, problem.biases, strict=True)):
        scales = weight.abs().amax(1) / 127
        codes = (weight / scales[:, None]).round().to(torch.int8)
        constants.append(tensor(numpy.ascontiguousarray(codes.numpy().T), f"B{i}"))
        constants.append(tensor(scales.numpy(), f"scales{i}"))
        constants.append(tensor(bias.numpy(), f"bias{i}"))
        nodes.append(onnx.helper.make_node(
            "DynamicQuantizeMatMul", ["A", f"B{i}", f"scales{i}", "", f"bias{i}"], [f"Y{i}"],
            domain="com.microsoft"))
        sizes = [len(problem.x), len(weight)]
        results.append(onnx.helper.make_tensor_value_info(f"Y{i}", real, sizes))
    a = onnx.helper.make_tensor_value_info("A", real, list(problem.x.shape))
    graph = onnx.helper.make_graph(nodes, "linear", [a], results, constants)
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def onnxruntime(problem, spinning):
    ort = need("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    session = ort.InferenceSession(onnx_model(problem), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("A", problem.x.numpy())
    results = [torch.empty(len(problem.x), len(w)) for w in problem.weights]
    for i, y in enumerate(results):
        value = ort.OrtValue.ortvalue_from_numpy(y.numpy())
        binding.bind_ortvalue_output(f"Y{i}", value)

    def run():
        session.run_with_iobinding(binding)
        return [torch.from_numpy(y.numpy()) for y in binding.get_outputs()]

    # Outputs are taken only where they are looked at: the timed pass is the run alone.
    run.timed = lambda: session.run_with_iobinding(binding)
    return run


def torchao(problem, compiled):
    quantization = need("torchao.quantization")
    config = quantization.Int8DynamicActivationInt8WeightConfig()
    layers = []
    for weight, bias in zip(problem.weights, problem.biases, strict=True):
        layer = torch.nn.Linear(*weight.shape[::-1], device="meta")
        layer.weight, layer.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
        quantization.quantize_(layer, config)
        layers.append((layer.weight, layer.bias))
    linear = torch.nn.functional.linear
    if compiled:
        torch._dynamo.reset()
        linear = torch.compile(lambda x, w, b: torch.nn.functional.linear(x, w, b), dynamic=False)
    return lambda: [linear(problem.x, w, b) for w, b in layers]


CANDIDATES = {  # name: (the peer whose best counts, function)
    "fp32": ("fp32", fp32),
    "bf16": ("bf16", bf16),
    "te_int8": ("te_int8", te_int8),
    "onnxruntime, spinning": ("onnxruntime", lambda problem: onnxruntime(problem, True)),
    "onnxruntime, not spinning": ("onnxruntime", lambda problem: onnxruntime(problem, False)),
    "torchao, eager": ("torchao", lambda problem: torchao(problem, False)),
    "torchao, compiled": ("torchao", lambda problem: torchao(problem, True)),
}


def error_of(results, expected):
    """The largest relative error of any weight's result."""
    pairs = zip(results, expected, strict=True)
    return max(float((y.float() - e).norm() / e.norm()) for y, e in pairs)


def turn(run, times, count):
    """Rests, then makes at least three passes; the first warms up and does not count."""
    time.sleep(REST_SECONDS)
    run()
    end = time.perf_counter() + TURN_SECONDS
    passes = 0
    while passes < 2 or time.perf_counter() < end:
        start = time.perf_counter_ns()
        run()
        times.append((time.perf_counter_ns() - start) * 1e-6 / count)
        passes += 1


def measure(shape, rounds):
    """Returns one dict per candidate: its times in milliseconds, or why it has none."""
    problem = Problem.of(*shape)
    expected = fp32(problem)()
    rows, runs = [], []
    for name, (peer, make) in CANDIDATES.items():
        row = {"shape": list(shape), "candidate": name, "peer": peer}
        rows.append(row)
        try:
            run = make(problem)
            row["error"] = error_of(run(), expected)
        except Missing as missing:
            row["missing"] = str(missing)
            continue
        except Exception as error:  # a peer's: the others still count
            row["missing"] = f"failed: {type(error).__name__}: {error}"
            continue
        if row["error"] > ERROR_BOUND:
            row["missing"] = f"wrong result, relative error {row['error']:.2g}"
            continue
        runs.append((row, getattr(run, "timed", run), []))
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            random.shuffle(runs)
            for _, run, times in runs:
                turn(run, times, len(problem.weights))
    finally:
        gc.enable()
    for row, _, times in runs:
        row["min_ms"], row["median_ms"] = min(times), statistics.median(times)
    return rows


def print_rows(rows):
    print(f"\nM, N, K = {', '.join(map(str, rows[0]['shape']))}")
    print(f"{'':26} {'min ms':>9} {'median ms':>10} {'error':>8}")
    for row in rows:
        if "missing" in row:
            print(f"{row['candidate']:26} {row['missing']}")
        else:
            print(f"{row['candidate']:26} {row['min_ms']:9.3f} {row['median_ms']:10.3f} {row['error']:8.4f}")
    sys.stdout.flush()


def context(threads, rounds):
    versions = {"torch": torch.__version__}
    for name in ("onnxruntime", "torchao"):
        try:
            versions[name] = need(name).__version__
        except Missing as missing:
            versions[name] = str(missing)
    cpu = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {"cpu": cpu, "threads": threads, "rounds": rounds, "versions": versions}


def read_shape(text):
    sizes = tuple(int(size) for size in text.split(","))
    if len(sizes) != 3 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"expected M,N,K, got {text}")
    return sizes


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = pathlib.Path(__file__).resolve().parent.parent
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shapes", type=read_shape, nargs="+", metavar="M,N,K",
                        default=[read_shape(shape) for shape in SHAPES])
    parser.add_argument("--library", type=pathlib.Path, default=root / "build/lib/libte_int8.so")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    random.seed(1)
    if arguments.library.exists():
        torch.ops.load_library(arguments.library)
    else:
        print(f"{arguments.library}: no such file, te_int8 does not take part")
    about = context(arguments.threads, arguments.rounds)
    print(json.dumps(about))
    rows = []
    with torch.no_grad():
        for shape in arguments.shapes:
            rows += measure(shape, arguments.rounds)
            print_rows(rows[-len(CANDIDATES):])
            if arguments.json:
                arguments.json.write_text(json.dumps({"context": about, "peers": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
