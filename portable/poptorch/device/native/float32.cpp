// Products of float32, for x86 processors with AVX-512. Nothing here runs, or is inlined elsewhere, without the check
// in float32_products().

#include "kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
// Before the target is changed: what these headers define must stay plain code.
#include <algorithm>
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f")
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace poptorch_kernels {
namespace {

#include "packing.h"

struct FloatWords {
  static constexpr int64_t kElements = 1;

  static ALWAYS_INLINE __m512i along(const Matrix& from, int64_t at, int64_t count) {
    const __mmask16 mask = static_cast<__mmask16>((1u << std::clamp<int64_t>(count, 0, kLanes)) - 1);
    return _mm512_maskz_loadu_epi32(mask, static_cast<const float*>(from.data) + at);
  }

  static ALWAYS_INLINE __m512i across(const Matrix& from, int64_t at, int64_t, int64_t count, bool) {
    return along(from, at, count);
  }

  static ALWAYS_INLINE __m512 added(__m512 sum, __m512i left, __m512i right) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(left), _mm512_castsi512_ps(right), sum);
  }
};

#include "products.h"

} // namespace
} // namespace poptorch_kernels

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const poptorch_kernels::Products* poptorch_kernels::float32_products() {
  const bool runs = __builtin_cpu_supports("avx512f");
  return runs ? &poptorch_kernels::products<poptorch_kernels::FloatWords> : nullptr;
}
#else
const poptorch_kernels::Products* poptorch_kernels::float32_products() {
  return nullptr;
}
#endif
