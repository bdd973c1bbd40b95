// te_int8: INT8 quantization-aware training and INT8 inference for C++ LibTorch.
#pragma once

#include <te_int8/backends.h>
#include <te_int8/config.h>
#include <te_int8/diagnostics.h>
#include <te_int8/guard.h>
#include <te_int8/modules.h>
#include <te_int8/operators.h>
#include <te_int8/quantized_linear.h>
#include <te_int8/recipe.h>
#include <te_int8/report.h>
