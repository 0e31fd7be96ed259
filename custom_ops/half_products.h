// How torch's products of many rows are computed for weights of half on a CPU, as PopTorch's runtime computes them:
// in bfloat16 with float32 sums where the processor has units that make it worth it, in float32 elsewhere.
// POPTORCH_PORTABLE_HALF decides otherwise, as it does for the runtime.
#pragma once

#include "speed.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#endif

#include <cstdlib>
#include <string>

namespace half_products {

inline bool has_units() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

// Whether products of bfloat16 are at least 1.5 times as fast as float32's.
inline bool measured() {
  const at::Tensor left = at::ones({256, 768}, at::kFloat), right = at::ones({768, 768}, at::kFloat);
  const at::Tensor narrow_left = left.to(at::kBFloat16), narrow_right = right.to(at::kBFloat16);
  return speed::ratio([&] { at::mm(left, right); }, [&] { at::mm(narrow_left, narrow_right); }) >= 1.5;
}

// Whether products of half are in bfloat16. Found out once.
inline bool in_bfloat16() {
  static const bool answer = [] {
    const char* word = std::getenv("POPTORCH_PORTABLE_HALF");
    return word && *word ? std::string(word) == "bfloat16" : has_units() && measured();
  }();
  return answer;
}

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
__attribute__((target("avx512f,avx512bf16"))) inline void round_by_units(const uint16_t* from, uint16_t* to,
                                                                         int64_t vectors) {
  for (int64_t i = 0; i < vectors; ++i) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 16 * i));
    const __m256bh narrow = _mm512_cvtneps_pbh(_mm512_cvtph_ps(half));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 16 * i), reinterpret_cast<__m256i>(narrow));
  }
}
#endif

// A contiguous tensor of float16 on a CPU, rounded to bfloat16 in one pass: torch's own takes several times as long.
inline at::Tensor rounded(const at::Tensor& half) {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  if (has_units() && half.numel() % 16 == 0) {
    const at::Tensor result = at::empty(half.sizes(), half.options().dtype(at::kBFloat16));
    const auto* from = static_cast<const uint16_t*>(half.data_ptr());
    auto* to = static_cast<uint16_t*>(result.data_ptr());
    at::parallel_for(0, half.numel() / 16, 4096, [&](int64_t first, int64_t last) {
      round_by_units(from + 16 * first, to + 16 * first, last - first);
    });
    return result;
  }
#endif
  return half.to(at::kFloat).to(at::kBFloat16); // torch has no fast way from one to the other
}

} // namespace half_products
