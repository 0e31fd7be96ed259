// A prompt's attention by the kernel that PopTorch's runtime has for it (portable/poptorch/device/native): torch's own
// takes several times as long in bfloat16. The runtime's library lies beside this one in the repository and is opened
// when it is needed first; where it is not built, or of another version, torch's serves.
#pragma once

#include "../portable/poptorch/device/native/kernels.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <cstdlib>
#include <string>

#include <dlfcn.h>

namespace prompt_attention {

struct Library {
  int64_t (*scratch)(const poptorch_kernels::Attention*, int64_t threads, bool backward) = nullptr;
  void (*run)(const poptorch_kernels::Attention*, int64_t threads, bool backward) = nullptr;
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
      library.scratch = reinterpret_cast<decltype(library.scratch)>(dlsym(handle, "poptorch_attention_scratch"));
      library.run = reinterpret_cast<decltype(library.run)>(dlsym(handle, "poptorch_attention"));
    }
    return library;
  }();
  return found;
}

// Whether there is a kernel for tensors of this type.
inline bool serves(at::ScalarType type, at::Device device) {
  return device.is_cpu() && (type == at::kFloat || type == at::kBFloat16) && library().run != nullptr;
}

// out = softmax(causal(query key^T / sqrt(D))) value. Each is (H, T, D) and of one type, its last dimension contiguous;
// sums are of float32.
inline void run(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const at::Tensor& out) {
  const auto view = [](const at::Tensor& heads) {
    return poptorch_kernels::View{heads.data_ptr(), 0, heads.stride(0), heads.stride(1)};
  };
  const uint64_t unused = 0; // the key of dropout
  const at::Tensor log_sums = at::empty({query.size(0), query.size(1)}, at::kFloat);
  poptorch_kernels::Attention call{};
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
  library().run(&call, threads, false);
}

} // namespace prompt_attention
