// Memory for the results and panels of the back end "cpu".
#pragma once

#include <torch/types.h>

namespace te_int8::cpu {

/// An uninitialized tensor of the CPU. From 2 MiB on its memory is made of huge pages where the system has them,
/// and goes to the next tensor of that size when it dies: fresh memory costs a fault and the zeroing of each page
/// at every call, which takes as long as a good part of an INT8 product. Up to 64 MiB wait for their next use.
at::Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype);

}  // namespace te_int8::cpu
