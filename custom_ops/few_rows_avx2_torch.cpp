// The kernels for x86 processors with AVX2, FMA and F16C. Nothing here runs, or is inlined elsewhere, without the
// check in avx2_kernels(): the library stays safe for other machines.

#include "few_rows_kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
// Before the target is changed: what these headers define must stay plain code.
#include <algorithm>
#include <cmath>
#include <cpuid.h>
#include <cstring>
#include <immintrin.h>
#include <iterator>
#include <limits>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace few_rows {
namespace {

using Floats = __m256;
using Bytes = __m256i;
constexpr int kWidth = 8, kTogether = 1;

// Six streams give a single input row enough sums that do not wait for each other, and are read faster than one, or
// than rows that lie side by side. With four input rows, three matrix rows' sums, weights and an input fill the 16
// registers.
constexpr int64_t kLead = 0;
constexpr int kFloatingRows[] = {6, 3, 3, 3}, kQuantisedRows[] = {2, 2, 2, 2};

inline Floats load(const float* weights) {
  return _mm256_loadu_ps(weights);
}
inline Floats load(const uint16_t* weights) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weights)));
}
inline float one(const float* weights) {
  return *weights;
}
inline float one(const uint16_t* weights) {
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(*weights)));
}

inline Floats kept(Floats a) {
  asm("" : "+x"(a));
  return a;
}

inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return _mm256_fmadd_ps(a, b, c);
}

// In halves of 4, 2 and 1 lanes.
inline __m128 four_sums(Floats a, Floats b, Floats c, Floats d) {
  const Floats ab = _mm256_permute2f128_ps(a, b, 0x20) + _mm256_permute2f128_ps(a, b, 0x31); // 4 lanes of each
  const Floats cd = _mm256_permute2f128_ps(c, d, 0x20) + _mm256_permute2f128_ps(c, d, 0x31);
  const Floats pairs = _mm256_shuffle_ps(ab, cd, 0x44) + _mm256_shuffle_ps(ab, cd, 0xEE); // a, a, c, c, b, b, d, d
  const Floats all = pairs + _mm256_permute_ps(pairs, 0xB1);
  return _mm_blend_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1), 0b1010);
}

template <int> inline Bytes load_bytes(const int8_t* bytes) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
}
inline Floats load_scales(const float* scales, int64_t groups) {
  if (groups == kWidth) {
    return load(scales);
  }
  alignas(32) float some[kWidth] = {};
  std::copy_n(scales, groups, some);
  return _mm256_load_ps(some);
}
inline Floats load_scales(const uint16_t* scales, int64_t groups) {
  if (groups == kWidth) {
    return load(scales);
  }
  alignas(16) uint16_t some[kWidth] = {};
  std::copy_n(scales, groups, some);
  return load(some);
}

// What is multiplied with the products of 8 groups.
class Factors {
public:
  Factors() = default;
  explicit Factors(Floats all) {
    _mm256_store_ps(all_, all);
  }

  // In the lanes of the products: that of one group.
  Floats at(int64_t place) const {
    return _mm256_broadcast_ss(all_ + place);
  }

private:
  alignas(32) float all_[kWidth];
};

// Weights, with what is multiplied with inputs. The instruction multiplies unsigned bytes with signed ones: the
// weights' signs go to the inputs.
class PreparedBytes {
public:
  PreparedBytes() = default;
  explicit PreparedBytes(Bytes weights) : weights_(weights), absolute_(_mm256_abs_epi8(weights)) {
  }

  // 32 products, four in a lane. |weights| <= 127 and |inputs| <= 127, so that no pair overflows int16.
  Floats products(Bytes inputs) const {
    const __m256i pairs = _mm256_maddubs_epi16(absolute_, _mm256_sign_epi8(inputs, weights_));
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }

private:
  Bytes weights_, absolute_;
};

} // namespace
} // namespace few_rows

#include "few_rows_vectors.h"

namespace few_rows {
namespace {

const Kernels fast_kernels = {"avx2",     product,  weighted_sum, softmax, activate,
                              layer_norm, quantise, to_half,      largest, sum_of_exp};

} // namespace
} // namespace few_rows

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const few_rows::Kernels* few_rows::avx2_kernels() {
  unsigned a, b, c = 0, d; // __builtin_cpu_supports() has no name for F16C before GCC 11, nor in clang 14
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
  const bool runs = f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return runs ? &fast_kernels : nullptr;
}
#else
const few_rows::Kernels* few_rows::avx2_kernels() {
  return nullptr;
}
#endif
