#!/usr/bin/env python3
"""An INT8 Linear forward on a GPU beside what others offer, all in one run, quantization of x and bias included.

    python benchmarks/cuda_peers.py build/lib/libte_int8.so [--json FILE]

bf16          torch.nn.functional.linear
te_int8       torch.ops.te_int8.linear_prequantized
torchao int8  Int8DynamicActivationInt8WeightConfig on a Linear, by torch.compile
torchao fp8   Float8DynamicActivationFloat8WeightConfig with a scale a row, by torch.compile
bitsandbytes  Linear8bitLt without outliers (threshold 0), which computes in fp16

Timed as benchmarks/cuda.py does it. Each result is compared with that of bf16 before. What is not installed, or refuses
a shape, is said to be so. benchmarks/cuda_requirements.txt names what is needed, report.py makes a table and a plot.
"""

import torch

from cuda import LINEAR_SHAPES, Record, begin, bf16, copies, measure, ops, parser_of

SHAPES = LINEAR_SHAPES + [(16, 4096, 4096), (1, 4096, 4096)]
ERROR_BOUND = 0.06  # of the norm; FP8 on normally distributed numbers gives 0.04, INT8 0.01


def linears(n, k, count, convert):
    result = []
    for _ in range(count):
        layer = torch.nn.Linear(k, n, device="cuda", dtype=torch.bfloat16)
        result.append(convert(layer))
    return result


compiled_linear = torch.compile(torch.nn.functional.linear)  # one for all layers of a shape


def of_torchao(config):
    def convert(layer):
        from torchao.quantization import quantize_

        model = torch.nn.Sequential(layer)
        quantize_(model, config())
        return lambda x: compiled_linear(x, model[0].weight, model[0].bias)

    return convert


def int8_config():
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return Int8DynamicActivationInt8WeightConfig()


def fp8_config():
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow

    return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())


def of_bitsandbytes(layer):
    import bitsandbytes

    result = bitsandbytes.nn.Linear8bitLt(layer.in_features, layer.out_features, has_fp16_weights=False, threshold=0.0)
    result.load_state_dict({name: value.half() for name, value in layer.state_dict().items()})
    return result.cuda()


def of_te_int8(layer):
    codes, scales = ops.quantize_rows(layer.weight)
    return lambda x: ops.linear_prequantized(x, codes, scales, layer.bias)


PEERS = {"te_int8": of_te_int8, "torchao int8": of_torchao(int8_config), "torchao fp8": of_torchao(fp8_config),
         "bitsandbytes": of_bitsandbytes}


def candidates_for(m, n, k):
    """{name: [call, ...]}, and {name: why not}."""
    count = copies(2 * m * k + n * k + 2 * m * n)
    inputs = [bf16(m, k) for _ in range(count)]

    def seeded(convert):
        torch.manual_seed(7)
        return linears(n, k, count, convert)

    reference = seeded(lambda layer: layer)
    expected = reference[0](inputs[0])
    result, missing = {"bf16": [lambda x=x, f=f: f(x) for x, f in zip(inputs, reference, strict=True)]}, {}
    for name, convert in PEERS.items():
        dtype = torch.float16 if name == "bitsandbytes" else torch.bfloat16
        try:
            torch.compiler.reset()
            layers = seeded(convert)
            values = [x.to(dtype) for x in inputs]
            error = ((layers[0](values[0]) - expected).float().norm() / expected.float().norm()).item()
            if not error < ERROR_BOUND:
                raise RuntimeError(f"expected an error below {ERROR_BOUND}, got {error:.3f}")
        except Exception as failure:  # whatever a peer raises is its answer
            missing[name] = f"{type(failure).__name__}: {failure}".splitlines()[0][:120]
            continue
        result[name] = [lambda x=x, f=f: f(x) for x, f in zip(values, layers, strict=True)]
    result["again"] = result["bf16"]
    return result, missing


def main():
    options = begin(parser_of(__doc__, rounds=7))
    record = Record()
    with torch.no_grad():
        for shape in SHAPES:
            candidates, missing = candidates_for(*shape)
            record.add("peers", shape, measure(candidates, options.rounds), missing)
            del candidates
            torch.cuda.empty_cache()
    if options.json:
        record.save(options.json)


if __name__ == "__main__":
    main()
