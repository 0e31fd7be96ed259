// The kernels for x86 processors with AVX-512 and its dot products of bytes (VNNI). Nothing here runs, or is inlined
// elsewhere, without the check in avx512_kernels(): the library stays safe for other machines. Processors that have
// AVX-512 without VNNI take the kernels for AVX2.

#include "few_rows_kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
// Before the target is changed: what these headers define must stay plain code.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <immintrin.h>
#include <iterator>
#include <limits>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c"))),        \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")
#endif

namespace few_rows {
namespace {

using Floats = __m512;
using Bytes = __m512i;
constexpr int kWidth = 16, kTogether = 2;

// 32 registers hold the sums of 3 times 8 rows, the weights and an input. One stream is what the processor follows
// best.
constexpr int64_t kLead = 4096; // a tenth of float16's time on Zen 5, 2 to 10 % of int8's, nothing of float32's
constexpr int kFloatingRows[] = {1, 3, 3, 3, 4, 4, 3, 3}, kQuantisedRows[] = {1, 2, 2, 2};

inline Floats load(const float* weights) {
  return _mm512_loadu_ps(weights);
}
inline Floats load(const uint16_t* weights) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights)));
}
inline float one(const float* weights) {
  return *weights;
}
inline float one(const uint16_t* weights) {
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(*weights)));
}

inline Floats kept(Floats a) {
  asm("" : "+v"(a));
  return a;
}

inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return _mm512_fmadd_ps(a, b, c);
}

// In halves of 8, 4, 2 and 1 lanes.
inline __m128 four_sums(Floats a, Floats b, Floats c, Floats d) {
  const Floats ab = _mm512_shuffle_f32x4(a, b, 0x44) + _mm512_shuffle_f32x4(a, b, 0xEE); // 8 lanes of each
  const Floats cd = _mm512_shuffle_f32x4(c, d, 0x44) + _mm512_shuffle_f32x4(c, d, 0xEE);
  const Floats all = _mm512_shuffle_f32x4(ab, cd, 0x88) + _mm512_shuffle_f32x4(ab, cd, 0xDD); // 4 of each
  const Floats pairs = all + _mm512_permute_ps(all, 0x4E);
  return _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, pairs + _mm512_permute_ps(pairs, 0xB1)));
}

template <int groups> inline Bytes load_bytes(const int8_t* bytes) {
  if constexpr (groups == 2) {
    return _mm512_loadu_si512(bytes);
  } else {
    return _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)));
  }
}
inline Floats load_scales(const float* scales, int64_t groups) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << groups) - 1), scales);
}
inline Floats load_scales(const uint16_t* scales, int64_t groups) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << groups) - 1), scales));
}

// What is multiplied with the products of 16 groups.
class Factors {
public:
  Factors() = default;
  explicit Factors(Floats all) : all_(all) {
  }

  // In the lanes of the products: those of two groups.
  Floats at(int64_t place) const {
    const __m512i first = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    return _mm512_permutexvar_ps(_mm512_add_epi32(first, _mm512_set1_epi32(static_cast<int>(place))), all_);
  }

private:
  Floats all_;
};

// Weights, with what their products with inputs begin from. The instruction multiplies unsigned inputs with signed
// weights: 128 is added to the inputs, and 128 times the weights is taken off.
class PreparedBytes {
public:
  PreparedBytes() = default;
  explicit PreparedBytes(Bytes weights)
      : weights_(weights), begin_(_mm512_sub_epi32(_mm512_setzero_si512(), dot(_mm512_setzero_si512(), bias()))) {
  }

  Floats products(Bytes inputs) const {
    return _mm512_cvtepi32_ps(dot(begin_, _mm512_xor_si512(inputs, bias())));
  }

private:
  static Bytes bias() {
    return _mm512_set1_epi8(static_cast<char>(0x80));
  }
  // sum + 64 products, four in a lane. Nothing saturates.
  __m512i dot(__m512i sum, Bytes inputs) const {
    return _mm512_dpbusd_epi32(sum, inputs, weights_);
  }

  Bytes weights_;
  __m512i begin_;
};

} // namespace
} // namespace few_rows

#include "few_rows_vectors.h"

namespace few_rows {
namespace {

const Kernels fast_kernels = {"avx512",   product,  weighted_sum, softmax, activate,
                              layer_norm, quantise, to_half,      largest, sum_of_exp};

} // namespace
} // namespace few_rows

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const few_rows::Kernels* few_rows::avx512_kernels() {
  const bool runs = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512vnni");
  return runs ? &fast_kernels : nullptr;
}
#else
const few_rows::Kernels* few_rows::avx512_kernels() {
  return nullptr;
}
#endif
