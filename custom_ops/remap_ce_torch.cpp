// RemapCE on a CPU or a CUDA device. remap_ce.py says what it means; here it is the copy of the input that
// torch's own kernels make, on whatever device the input is, as one operator that autograd, torch.export,
// torch.compile and torch.vmap see. Loading the library registers it; no Python is needed.

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The operator through the dispatcher, so that whoever watches (tracing, a second derivative) sees it.
// std::string, not string_view: torch 2.0 has its own string_view, later ones the standard one.
Tensor remap_ce(const Tensor& x, int64_t grain_size, std::string debug_str) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("ai_graphcore::RemapCE", "")
                             .typed<Tensor(const Tensor&, int64_t, std::string)>();
  return op.call(x, grain_size, std::move(debug_str));
}

// Off-IPU memory is one piece: the grain and the name have nothing to say.
Tensor copy(const Tensor& x, int64_t grain_size, std::string /*debug_str*/) {
  TORCH_CHECK_VALUE(grain_size >= 1, "RemapCE: grain_size must be at least 1, not ", grain_size);
  return x.clone();
}

// The gradient of a copy is the gradient, copied in the same way.
struct RemapCE : torch::autograd::Function<RemapCE> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, int64_t grain_size, std::string debug_str) {
    ctx->saved_data["grain_size"] = grain_size;
    ctx->saved_data["debug_str"] = debug_str;
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    return remap_ce(x, grain_size, std::move(debug_str));
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    Tensor grad = remap_ce(grads[0], ctx->saved_data["grain_size"].toInt(), ctx->saved_data["debug_str"].toStringRef());
    return {grad, Tensor(), Tensor()}; // one for each argument
  }
};

Tensor differentiable_copy(const Tensor& x, int64_t grain_size, std::string debug_str) {
  // Inside torch.func.grad and jvp, which refuse autograd functions written in C++: clone() has derivatives
  // of its own there.
  if (c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerBackMode)) {
    return copy(x, grain_size, std::move(debug_str));
  }
  return RemapCE::apply(x, grain_size, std::move(debug_str));
}

} // namespace

TORCH_LIBRARY(ai_graphcore, m) {
  m.def("RemapCE(Tensor x, int grain_size=8, str debug_str=\"remap\") -> Tensor",
        {at::Tag::view_copy}); // a copy of its input: what looks through copies may look through this one
}

TORCH_LIBRARY_IMPL(ai_graphcore, CompositeExplicitAutograd, m) {
  m.impl("RemapCE", copy); // CPU, CUDA and Meta
}

TORCH_LIBRARY_IMPL(ai_graphcore, Autograd, m) {
  m.impl("RemapCE", differentiable_copy);
}

// Under torch.vmap clone() keeps the batch dimension by its own rule; without this the operator would run once
// per sample.
TORCH_LIBRARY_IMPL(ai_graphcore, FuncTorchBatched, m) {
  m.impl("RemapCE", copy);
}
