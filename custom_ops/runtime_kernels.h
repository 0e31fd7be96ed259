// What PopTorch's runtime has kernels for (portable/poptorch/device/native): a prompt's attention, of which torch's own
// takes several times as long in bfloat16, and products of float32, which MKL makes without AVX-512 on AMD's
// processors. The runtime's library lies beside this one in the repository and is opened when it is needed first; where
// it is not built, or of another version, torch's serves.
#pragma once

#include "../portable/poptorch/device/native/kernels.h"
#include "speed.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <cstdlib>
#include <string>
#include <type_traits>

#include <dlfcn.h>

namespace runtime_kernels {

using poptorch_kernels::Attention;
using poptorch_kernels::Product;

struct Library {
  int64_t (*scratch)(const Attention*, int64_t threads, bool backward) = nullptr;
  void (*attention)(const Attention*, int64_t threads, bool backward) = nullptr;
  bool (*multiplies)(poptorch_kernels::Type) = nullptr;
  void (*memory)(const Product*, poptorch_kernels::Type, int64_t threads, int64_t* packed, int64_t* scratch) = nullptr;
  void (*product)(const Product*, poptorch_kernels::Type, int64_t threads) = nullptr;
};

// Where the runtime looks for it: POPTORCH_PORTABLE_KERNELS names another file, or is "none".
inline std::string path() {
  const char* word = std::getenv("POPTORCH_PORTABLE_KERNELS");
  if (word && *word) {
    return std::string(word) == "none" ? "" : word;
  }
  static const char anchor = 0;
  Dl_info here{};
  if (!dladdr(&anchor, &here) || !here.dli_fname) {
    return "";
  }
  const std::string own = here.dli_fname;
  return own.substr(0, own.rfind('/') + 1) + "portable/poptorch/device/native/poptorch_kernels.so";
}

// Found once; without functions where there is none.
inline const Library& library() {
  static const Library found = [] {
    const std::string file = path();
    void* handle = file.empty() ? nullptr : dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    const auto version = handle ? reinterpret_cast<int64_t (*)()>(dlsym(handle, "poptorch_kernels_version")) : nullptr;
    Library library;
    if (version && version() == poptorch_kernels::kVersion) {
      const auto find = [handle](auto& function, const char* name) {
        function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(handle, name));
      };
      find(library.scratch, "poptorch_attention_scratch");
      find(library.attention, "poptorch_attention");
      find(library.multiplies, "poptorch_multiplies");
      find(library.memory, "poptorch_product_memory");
      find(library.product, "poptorch_product");
    }
    return library;
  }();
  return found;
}

// Whether there is attention for tensors of this type.
inline bool has_attention(at::ScalarType type, at::Device device) {
  return device.is_cpu() && (type == at::kFloat || type == at::kBFloat16) && library().attention != nullptr;
}

// out = softmax(causal(query key^T / sqrt(D))) value. Each is (H, T, D) and of one type, its last dimension contiguous;
// sums are of float32.
inline void attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const at::Tensor& out) {
  const auto view = [](const at::Tensor& heads) {
    return poptorch_kernels::View{heads.data_ptr(), 0, heads.stride(0), heads.stride(1)};
  };
  const uint64_t unused = 0; // the key of dropout
  const at::Tensor log_sums = at::empty({query.size(0), query.size(1)}, at::kFloat);
  Attention call{};
  call.query = view(query);
  call.key = view(key);
  call.value = view(value);
  call.out = view(out);
  call.log_sums = log_sums.data_ptr<float>();
  call.keys = &unused;
  call.samples_per_key = call.batch = 1;
  call.heads = query.size(0);
  call.length = query.size(1);
  call.width = call.value_width = query.size(2);
  call.scale = 1.0f / std::sqrt(static_cast<float>(call.width));
  call.threshold = 65536; // nothing is dropped
  call.narrow = query.scalar_type() == at::kBFloat16;
  const int64_t threads = at::get_num_threads();
  const at::Tensor scratch = at::empty({library().scratch(&call, threads, false)}, at::kFloat);
  call.scratch = scratch.data_ptr<float>();
  library().attention(&call, threads, false);
}

// left right + bias: (M, K), (K, N), (N,) or undefined -> (M, N), of float32 on the CPU. One of each matrix's strides
// is 1.
inline at::Tensor multiply(const at::Tensor& left, const at::Tensor& right, const at::Tensor& bias) {
  const auto view = [](const at::Tensor& matrix) {
    return poptorch_kernels::Matrix{matrix.data_ptr(), matrix.stride(0), matrix.stride(1), false};
  };
  const at::Tensor out = at::empty({left.size(0), right.size(1)}, left.options());
  if (bias.defined()) {
    out.copy_(bias.expand_as(out));
  }
  Product call{};
  call.left = view(left);
  call.right = view(right);
  call.out = out.data_ptr<float>();
  call.out_row = out.stride(0);
  call.rows = out.size(0);
  call.columns = out.size(1);
  call.depth = left.size(1);
  call.add = bias.defined();
  const int64_t threads = at::get_num_threads();
  int64_t packed = 0, scratch = 0;
  library().memory(&call, poptorch_kernels::kFloat32, threads, &packed, &scratch);
  const at::Tensor room = at::empty({packed}, at::kByte), panels = at::empty({scratch}, at::kByte); // aligned to 64
  call.packed = room.data_ptr();
  call.scratch = panels.data_ptr();
  library().product(&call, poptorch_kernels::kFloat32, threads);
  return out;
}

// Whether multiply() is at least 1.2 times as fast as torch's product. Found out once.
inline bool multiplies() {
  static const bool answer = [] {
    if (!library().product || !library().multiplies(poptorch_kernels::kFloat32)) {
      return false;
    }
    const at::Tensor left = at::ones({256, 768}, at::kFloat), right = at::ones({768, 768}, at::kFloat);
    const auto ours = [&] { multiply(left, right, {}); };
    return speed::ratio([&] { at::mm(left, right); }, ours) >= 1.2;
  }();
  return answer;
}

} // namespace runtime_kernels
