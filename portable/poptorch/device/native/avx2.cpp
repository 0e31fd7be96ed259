// The kernels for x86 processors with AVX2, FMA and F16C. Nothing here runs, or is inlined elsewhere, without the check
// in avx2_kernels().

#include "kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
// Before the target is changed: what these headers define must stay plain code.
#include <algorithm>
#include <cmath>
#include <cpuid.h>
#include <cstring>
#include <immintrin.h>
#include <limits>
#include <type_traits>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace poptorch_kernels {
namespace {

constexpr int kWidth = 8;
constexpr int kRows = 6; // of a tile of a product: 12 sums in 16 registers
typedef uint64_t Wide __attribute__((vector_size(kWidth * 4)));

// The product of the lower 32 bits of each lane and a factor of 32 bits.
ALWAYS_INLINE Wide multiply_low(Wide x, uint64_t factor) {
  return reinterpret_cast<Wide>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(x), _mm256_set1_epi64x(static_cast<int64_t>(factor))));
}

#include "vectors.h"

#include "tiles.h"

#include "attention.h"

#include "residual.h"

struct Square {
  Floats first, second;
};

// a^2 as the sum of two floats.
ALWAYS_INLINE Square square_of(Floats a) {
  const Floats first = a * a;
  return {first, reinterpret_cast<Floats>(_mm256_fmsub_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(a),
                                                          reinterpret_cast<__m256>(first)))};
}

#include "gelu.h"

#include "cross_entropy.h"

ALWAYS_INLINE Floats square_root(Floats x) {
  return reinterpret_cast<Floats>(_mm256_sqrt_ps(reinterpret_cast<__m256>(x)));
}
ALWAYS_INLINE Floats floats_of_halves(Halves x) {
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(x)));
}
ALWAYS_INLINE Halves halves_of_floats(Floats x) {
  return reinterpret_cast<Halves>(
      _mm256_cvtps_ph(reinterpret_cast<__m256>(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#include "adam.h"

const Kernels fast_kernels = {
    "avx2", scratch_size<Singles>, forward<Singles>, backward<Singles>, residual, gelu, cross_entropy,
    adam,   philox_block};

} // namespace
} // namespace poptorch_kernels

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const poptorch_kernels::Kernels* poptorch_kernels::avx2_kernels() {
  unsigned a, b, c = 0, d; // __builtin_cpu_supports() has no name for F16C before GCC 11, nor in clang 14
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
  const bool runs = f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return runs ? &fast_kernels : nullptr;
}
#else
const poptorch_kernels::Kernels* poptorch_kernels::avx2_kernels() {
  return nullptr;
}
#endif
