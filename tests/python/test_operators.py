"""The operations seen from Python: opcheck, torch.compile, torch.export, TorchScript, autocast.

TE_INT8_LIBRARY is the path of libte_int8.so. Everything runs on the CPU, or on the device that
TE_INT8_TEST_DEVICE names; there torch.compile needs a C++ compiler and Python's headers. Exit code 77:
skipped, torch cannot be imported.
"""

import os
import sys
import unittest

try:
    import torch
except ImportError as error:
    print(f"skipped: torch cannot be imported: {error}")
    sys.exit(77)

torch.ops.load_library(os.environ["TE_INT8_LIBRARY"])
te_int8 = torch.ops.te_int8
DEVICE = torch.device(os.environ.get("TE_INT8_TEST_DEVICE", "cpu"))
torch.set_default_device(DEVICE)

ALL_CHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)
BACKWARDS = (
    {},
    {"int8_grad_input": True},
    {"int8_grad_weight": True},
    {"int8_grad_input": True, "int8_grad_weight": True},
)


class Model(torch.nn.Module):
    """Two layers with something between them, called through torch.ops."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(24, 40)
        self.second = torch.nn.Linear(40, 10)

    def forward(self, x):
        y = torch.ops.te_int8.linear(x, self.first.weight, self.first.bias)
        y = torch.nn.functional.gelu(y)
        return torch.ops.te_int8.linear(
            y, self.second.weight, self.second.bias, int8_grad_input=True, int8_grad_weight=True
        )


def leaf(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def gradients(model, function, x):
    """The output of `function`, and its gradients for x and for the parameters of `model`."""
    x = x.clone().requires_grad_()
    y = function(x)
    target = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return y, torch.autograd.grad((y * target).sum(), [x, *model.parameters()])


class OpCheck(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(61)

    def check(self, name, *args, **kwargs):
        with self.subTest(operation=name, arguments=[tuple(a.shape) for a in args], **kwargs):
            results = torch.library.opcheck(getattr(te_int8, name).default, args, kwargs)
            self.assertEqual(results, dict.fromkeys(ALL_CHECKS, "SUCCESS"))

    def test_quantizing_operations(self):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(6, 10, dtype=dtype)
            self.check("quantize_rows", x)
            self.check("quantize_rows", x.view(2, 3, 10), granularity="tensor")
            self.check("quantize_rows", x.t())
            self.check("quantize_columns", x)
            self.check("column_sums", x)
            self.check("quantize_rows_and_columns", x)
            self.check("quantize_rows_and_columns", x, column_sums=True)
        codes, scales = te_int8.quantize_rows(torch.randn(6, 10))
        self.check("requantize_columns", codes, scales)
        self.check("requantize_columns", codes, torch.ones(1))
        self.check("dequantize", codes, scales, out_dtype=torch.bfloat16)
        self.check("dequantize", codes.view(2, 3, 10), torch.ones(1))

    def test_scaled_mm(self):
        a, a_scales = te_int8.quantize_rows(torch.randn(6, 10))
        b, b_scales = te_int8.quantize_rows(torch.randn(7, 10))
        self.check("scaled_mm", a, b)
        self.check("scaled_mm", a, b, out_dtype=torch.int32)
        self.check("scaled_mm", a, b, a_scales, b_scales, torch.randn(7), out_dtype=torch.bfloat16)
        self.check("add_scaled_mm_", torch.randn(6, 7), a, b, a_scales, b_scales)

    def test_linear_without_gradients(self):
        x, weight, bias = torch.randn(2, 3, 10), torch.randn(7, 10), torch.randn(7)
        self.check("linear", x, weight, bias)
        self.check("linear", x[0, 0], weight)
        self.check("linear", x, weight, out_dtype=torch.bfloat16)

    def test_linear_with_gradients(self):
        for options in BACKWARDS:
            self.check("linear", leaf(2, 3, 10), leaf(7, 10), leaf(7), **options)
        self.check("linear", leaf(6, 10), leaf(7, 10))
        mixed = {"int8_output": False, "int8_grad_weight": True}
        self.check("linear", leaf(6, 10), leaf(7, 10), leaf(7), **mixed)
        self.check("linear", torch.randn(6, 10), leaf(7, 10), x_granularity="tensor")

    def test_linear_prequantized(self):
        codes, scales = te_int8.quantize_rows(torch.randn(7, 10))
        x_codes, x_scales = te_int8.quantize_rows(torch.randn(2, 3, 10))
        self.check("linear_prequantized", leaf(2, 3, 10), codes, scales, leaf(7))
        self.check("linear_prequantized", x_codes, codes, scales, torch.randn(7), x_scales=x_scales)
        options = {"x_scales": torch.ones(1), "out_dtype": torch.float16}
        self.check("linear_prequantized", x_codes, codes, scales, **options)


class Compilers(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(62)
        torch._dynamo.reset()
        self.model = Model()

    def assert_same_gradients(self, got, expected):
        """Equal but for what the compiler's own sums and gelu round differently."""
        torch.testing.assert_close(got[0], expected[0])
        for mine, theirs in zip(got[1], expected[1], strict=True):
            self.assertLess(float((mine - theirs).norm() / theirs.norm()), 1e-2)

    def test_compiled_forward_and_backward_equal_eager(self):
        compiled = torch.compile(self.model, fullgraph=True)
        for shape in ((16, 24), (2, 8, 24)):
            x = torch.randn(shape)
            self.assert_same_gradients(
                gradients(self.model, compiled, x), gradients(self.model, self.model, x)
            )

    def test_compiled_linear_has_the_bits_of_eager(self):
        for options in BACKWARDS:
            with self.subTest(**options):
                layer = torch.nn.Linear(24, 40)

                def forward(x, layer=layer, options=options):
                    return te_int8.linear(x, layer.weight, layer.bias, **options)

                x = torch.randn(5, 24)
                compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
                y, got = gradients(layer, compiled, x)
                y_eager, expected = gradients(layer, forward, x)
                self.assertTrue(torch.equal(y, y_eager))
                for mine, theirs in zip(got, expected, strict=True):
                    self.assertTrue(torch.equal(mine, theirs))

    def test_compiled_with_a_dynamic_batch(self):
        compiled = torch.compile(self.model, fullgraph=True, dynamic=True)
        for batch in (3, 8, 17):
            x = torch.randn(batch, 24)
            self.assert_same_gradients(
                gradients(self.model, compiled, x), gradients(self.model, self.model, x)
            )

    def test_compiled_under_autocast(self):
        compiled = torch.compile(self.model, fullgraph=True)
        x = torch.randn(16, 24)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            y, got = gradients(self.model, compiled, x)
            y_eager, expected = gradients(self.model, self.model, x)
        self.assertEqual(y.dtype, torch.bfloat16)
        torch.testing.assert_close(y, y_eager, rtol=2e-2, atol=2e-2)
        for mine, theirs in zip(got, expected, strict=True):
            self.assertEqual(mine.dtype, torch.float32)
            self.assertLess(float((mine - theirs).norm() / theirs.norm()), 5e-2)

    def test_exported_with_a_dynamic_batch(self):
        program = torch.export.export(
            self.model, (torch.randn(4, 24),), dynamic_shapes={"x": {0: torch.export.Dim("batch")}}
        )
        self.assertIn("te_int8.linear.default", program.graph_module.code)
        for batch in (4, 9, 1):
            x = torch.randn(batch, 24)
            self.assertTrue(torch.equal(program.module()(x), self.model(x)))

    def test_scripted_forward_equals_eager(self):
        scripted = torch.jit.script(self.model)
        for batch in (4, 9):
            x = torch.randn(batch, 24)
            self.assertTrue(torch.equal(scripted(x), self.model(x)))

    def test_meta_tensors_have_shapes_without_data(self):
        y = self.model.to("meta")(torch.empty(3, 5, 24, device="meta"))
        self.assertEqual((y.shape, y.dtype), (torch.Size([3, 5, 10]), torch.float32))


if __name__ == "__main__":
    unittest.main(verbosity=2)
