// How torch's products of many rows are computed for weights of half on a CPU, as PopTorch's runtime computes them:
// in bfloat16 with float32 sums where the processor has units that make it worth it, in float32 elsewhere.
// POPTORCH_PORTABLE_HALF decides otherwise, as it does for the runtime.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#endif

#include <algorithm>
#include <array>
#include <chrono>
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

// Seconds of a product of 256 rows.
inline double seconds(at::ScalarType type) {
  const at::Tensor left = at::ones({256, 768}, type), right = at::ones({768, 768}, type);
  const auto start = std::chrono::steady_clock::now();
  at::mm(left, right);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Whether products of bfloat16 are at least 1.5 times as fast as float32's, by the median of several samples.
inline bool measured() {
  std::array<double, 7> ratios;
  for (int sample = -1; sample < static_cast<int>(ratios.size()); ++sample) { // the first one warms up
    const double wide = seconds(at::kFloat), narrow = seconds(at::kBFloat16);
    if (sample >= 0) {
      ratios[sample] = wide / narrow;
    }
  }
  std::nth_element(ratios.begin(), ratios.begin() + ratios.size() / 2, ratios.end());
  return ratios[ratios.size() / 2] >= 1.5;
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
