"""cuBLASLt's int8 x int8 -> int8 products, through ctypes: no scale of a row fits into them, so nobody can use them for
what te_int8 does, but they show what the GPU's INT8 units give."""

import ctypes

import torch

INT8, FP32, INT32_SUMS = 3, 0, 72  # CUDA_R_8I, CUDA_R_32F, CUBLAS_COMPUTE_32I
TRANSPOSE_A, WORKSPACE_BYTES = 3, 1  # CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES
TRANSPOSED = 1  # CUBLAS_OP_T


class Heuristic(ctypes.Structure):
    _fields_ = [("algorithm", ctypes.c_uint64 * 8), ("workspace", ctypes.c_size_t), ("state", ctypes.c_int),
                ("waves", ctypes.c_float), ("reserved", ctypes.c_int * 4)]


class Product:
    """a [M,K] x b [N,K] -> [M,N], all int8; alpha is 1e-3."""

    def __init__(self, m, n, k, workspace_bytes=64 << 20):
        self.library = ctypes.CDLL("libcublasLt.so.13")  # LibTorch has loaded it
        self.handle, self.operation, preference = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        self.call("Create", ctypes.byref(self.handle))
        self.call("MatmulDescCreate", ctypes.byref(self.operation), INT32_SUMS, FP32)
        self.call("MatmulDescSetAttribute", self.operation, TRANSPOSE_A, *self.value(ctypes.c_int(TRANSPOSED)))
        # It thinks in columns: result^T [N,M] = b a^T, where b is what it calls transposed.
        self.layouts = [self.layout(k, n), self.layout(k, m), self.layout(n, m)]
        self.call("MatmulPreferenceCreate", ctypes.byref(preference))
        self.call("MatmulPreferenceSetAttribute", preference, WORKSPACE_BYTES, *self.value(ctypes.c_size_t(workspace_bytes)))
        self.workspace = torch.empty(workspace_bytes, dtype=torch.uint8, device="cuda")
        found, count = (Heuristic * 8)(), ctypes.c_int()
        b, a, result = self.layouts
        self.call("MatmulAlgoGetHeuristic", self.handle, self.operation, b, a, result, result, preference, len(found),
                  found, ctypes.byref(count))
        self.found = [h for h in found[:count.value] if h.state == 0]

    def call(self, name, *arguments):
        status = getattr(self.library, "cublasLt" + name)(*arguments)
        if status != 0:
            raise RuntimeError(f"cublasLt{name}: expected status 0, got {status}")

    @staticmethod
    def value(number):
        return ctypes.byref(number), ctypes.c_size_t(ctypes.sizeof(number))

    def layout(self, height, width):
        result = ctypes.c_void_p()
        self.call("MatrixLayoutCreate", ctypes.byref(result), INT8, ctypes.c_uint64(height), ctypes.c_uint64(width),
                  ctypes.c_int64(height))
        return result

    def run(self, heuristic, a, b, result):
        alpha, beta = ctypes.c_float(1e-3), ctypes.c_float(0)
        pointer = lambda tensor: ctypes.c_void_p(tensor.data_ptr())
        of_b, of_a, of_result = self.layouts
        self.call("Matmul", self.handle, self.operation, ctypes.byref(alpha), pointer(b), of_b, pointer(a), of_a,
                  ctypes.byref(beta), pointer(result), of_result, pointer(result), of_result,
                  ctypes.byref(heuristic.algorithm), pointer(self.workspace), ctypes.c_size_t(self.workspace.numel()),
                  ctypes.c_void_p(torch.cuda.current_stream().cuda_stream))
