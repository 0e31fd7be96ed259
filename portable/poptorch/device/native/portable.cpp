// The kernels for any processor: four lanes, which SSE2 and NEON have and compilers emulate elsewhere.

#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace poptorch_kernels {
namespace {

constexpr int kWidth = 4;
constexpr int kRows = 6; // of a tile of a product: 12 sums in 16 registers
typedef uint64_t Wide __attribute__((vector_size(kWidth * 4)));

// The product of the lower 32 bits of each lane and a factor of 32 bits.
ALWAYS_INLINE Wide multiply_low(Wide x, uint64_t factor) {
#if defined(__SSE2__)
  return reinterpret_cast<Wide>(
      _mm_mul_epu32(reinterpret_cast<__m128i>(x), _mm_set1_epi64x(static_cast<int64_t>(factor))));
#else
  return (x & (Wide{} + 0xFFFFFFFF)) * factor;
#endif
}

#include "vectors.h"

#include "tiles.h"

#include "attention.h"

#include "residual.h"

struct Square {
  Floats first, second;
};

// a^2 as the sum of two floats: the first is the square of the upper half of a's digits, which is exact.
ALWAYS_INLINE Square square_of(Floats a) {
  const Floats upper = reinterpret_cast<Floats>(reinterpret_cast<Ints>(a) & ~0xFFF);
  return {upper * upper, (a - upper) * (a + upper)};
}

#include "gelu.h"

#include "cross_entropy.h"

ALWAYS_INLINE Floats square_root(Floats x) {
#if defined(__SSE2__)
  return reinterpret_cast<Floats>(_mm_sqrt_ps(reinterpret_cast<__m128>(x)));
#else
  for (int i = 0; i < kWidth; ++i) {
    x[i] = std::sqrt(x[i]);
  }
  return x;
#endif
}

#include "halves.h"

#include "adam.h"

} // namespace
} // namespace poptorch_kernels

const poptorch_kernels::Kernels poptorch_kernels::portable_kernels = {
    "portable", scratch_size<Singles>, forward<Singles>, backward<Singles>, residual, gelu, cross_entropy,
    adam,       philox_block};
