// ScaledSwish(x, beta) = x * sigmoid(beta * x), the operator of custom_op.py, for CPU and CUDA. It is made of torch's own
// operators, so that torch knows its gradient. Loading the library registers it; on an IPU a PopART operator of the
// same name and domain takes its place.

#include <ATen/ops/mul.h>
#include <ATen/ops/sigmoid.h>
#include <torch/library.h>

TORCH_LIBRARY(com_example, m) {
  m.def("ScaledSwish(Tensor x, float beta) -> Tensor",
        [](const at::Tensor& x, double beta) { return at::mul(x, at::sigmoid(at::mul(x, beta))); });
}
