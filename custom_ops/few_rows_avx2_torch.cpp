// The kernels for x86 processors with AVX2, FMA and F16C. Nothing here runs, or is inlined elsewhere, without the
// check in avx2_kernels(): the library stays safe for other machines.

#include "few_rows_kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
// Before the target is changed: what these headers define must stay plain code.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "few_rows_math.h"

namespace few_rows {
namespace {

inline float horizontal_sum(__m256 v) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

inline __m256 eight(const float* weights) {
  return _mm256_loadu_ps(weights);
}
inline __m256 eight(const uint16_t* weights) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weights)));
}
inline float one(const float* weights) {
  return *weights;
}
inline float one(const uint16_t* weights) {
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(*weights)));
}

// What is read ahead where the arithmetic takes as long as the memory: the weights of the part after this one, evenly
// over all that is computed with this one. Both together then take the time of the slower of the two, not of both.
struct Ahead {
  const char* next;
  int64_t passes; // over each part

  void fetch(int64_t bytes) { // as many bytes of weights are about to be used
    const int64_t share = bytes / passes;
    for (int64_t byte = 0; byte < share; byte += 64) {
      _mm_prefetch(next + byte, _MM_HINT_T0);
    }
    next += share;
  }
};

// Where memory is the limit the processor follows its streams by itself: instructions that prefetch cost up to a third
// of the speed.
struct NothingAhead {
  void fetch(int64_t) {
  }
};

// R matrix rows, `apart` from each other, times M input rows: R M sums, each over k in one order, whatever R and M.
template <int R, int M, typename T, typename Reading>
inline void block(const T* w, int64_t apart, int64_t k, const float* x, int64_t x_stride, float* out,
                  int64_t out_stride, Reading& ahead) {
  __m256 sum[R][M];
  for (int r = 0; r < R; ++r) {
    for (int m = 0; m < M; ++m) {
      sum[r][m] = _mm256_setzero_ps();
    }
  }
  int64_t i = 0;
  for (; i + 8 <= k; i += 8) {
    ahead.fetch(8 * R * sizeof(T));
    __m256 weights[R];
    for (int r = 0; r < R; ++r) {
      weights[r] = eight(w + r * apart * k + i);
    }
    for (int m = 0; m < M; ++m) {
      const __m256 inputs = _mm256_loadu_ps(x + m * x_stride + i);
      for (int r = 0; r < R; ++r) {
        sum[r][m] = _mm256_fmadd_ps(weights[r], inputs, sum[r][m]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int m = 0; m < M; ++m) {
      float total = horizontal_sum(sum[r][m]);
      for (int64_t rest = i; rest < k; ++rest) { // rounded once, as above: not for the compiler to choose in each R, M
        total = std::fma(one(w + r * apart * k + rest), x[m * x_stride + rest], total);
      }
      out[m * out_stride + r * apart] = total;
    }
  }
}

// The matrix is read as a few streams, each of as many of its rows: the processor fetches them ahead by itself, and
// faster than one stream, or than rows that lie side by side. Six give a single input row enough sums that do not wait
// for each other; with four input rows, three matrix rows' sums, weights and an input fill the 16 registers.
template <int M, typename T, typename Reading>
inline void rows(const T* w, int64_t k, int64_t first, int64_t last, const float* x, int64_t x_stride, float* out,
                 int64_t out_stride, Reading& ahead) {
  constexpr int kStreams = M == 1 ? 6 : 3;
  const int64_t apart = (last - first) / kStreams;
  for (int64_t n = first; n < first + apart; ++n) {
    block<kStreams, M>(w + n * k, apart, k, x, x_stride, out + n, out_stride, ahead);
  }
  for (int64_t n = first + kStreams * apart; n < last; ++n) {
    block<1, M>(w + n * k, 0, k, x, x_stride, out + n, out_stride, ahead);
  }
}

// 1 to 4 input rows.
template <typename T, typename Reading>
inline void pass(int64_t count, const T* w, int64_t k, int64_t first, int64_t last, const float* x, int64_t x_stride,
                 float* out, int64_t out_stride, Reading& ahead) {
  switch (count) {
  case 1:
    return rows<1>(w, k, first, last, x, x_stride, out, out_stride, ahead);
  case 2:
    return rows<2>(w, k, first, last, x, x_stride, out, out_stride, ahead);
  case 3:
    return rows<3>(w, k, first, last, x, x_stride, out, out_stride, ahead);
  default:
    return rows<4>(w, k, first, last, x, x_stride, out, out_stride, ahead);
  }
}

template <typename T>
void floating_product(const T* w, int64_t k, const Inputs& in, int64_t first, int64_t last, float* out,
                      int64_t out_stride) {
  constexpr int64_t kBoundByMemory = sizeof(T) == 4 ? 4 : 3; // input rows, at most
  if (in.rows <= kBoundByMemory) {
    NothingAhead nothing;
    return pass(in.rows, w, k, first, last, in.x, in.stride, out, out_stride, nothing);
  }
  // A part of the matrix that stays in the cache while all rows of x go over it, up to four at a time.
  const int64_t passes = (in.rows + 3) / 4;
  const int64_t part = std::max<int64_t>(12, (128 << 10) / (k * static_cast<int64_t>(sizeof(T))) / 12 * 12);
  for (int64_t n = first; n < last; n += part) {
    const int64_t end = std::min(last, n + part);
    Ahead ahead{reinterpret_cast<const char*>(w + end * k), passes};
    for (int64_t m = 0, number = 0; number < passes; ++number) {
      const int64_t count = (in.rows - m + passes - number - 1) / (passes - number); // as evenly as it goes
      pass(count, w, k, n, end, in.x + m * in.stride, in.stride, out + m * out_stride, out_stride, ahead);
      m += count;
    }
  }
}

// 32 products of int8, added up in eight int32. |w| <= 127 and |x| <= 127, so that no pair overflows int16.
inline __m256i dot32(__m256i weights, __m256i absolute, __m256i inputs) {
  const __m256i pairs = _mm256_maddubs_epi16(absolute, _mm256_sign_epi8(inputs, weights));
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

template <int M>
inline void int8_row(const int8_t* w, const uint16_t* w_scales, int64_t k, const int8_t* x, const float* x_scales,
                     float* out, int64_t out_stride) {
  constexpr int64_t kTogether = 8; // groups whose scales are multiplied at once
  const int64_t groups = k / kGroup;
  __m256 sum[M][2]; // of even and of odd groups: one addition does not wait for the one before
  for (int m = 0; m < M; ++m) {
    sum[m][0] = sum[m][1] = _mm256_setzero_ps();
  }
  alignas(32) float factors[M][kTogether];
  const auto add = [&](int64_t group, int64_t place) {
    const __m256i weights = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + group * kGroup));
    const __m256i absolute = _mm256_abs_epi8(weights);
    for (int m = 0; m < M; ++m) {
      const __m256i inputs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + m * k + group * kGroup));
      const __m256 factor = _mm256_broadcast_ss(&factors[m][place]);
      __m256& part = sum[m][place % 2];
      part = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot32(weights, absolute, inputs)), factor, part);
    }
  };
  int64_t group = 0;
  for (; group + kTogether <= groups; group += kTogether) {
    const __m256 scales = eight(w_scales + group);
    for (int m = 0; m < M; ++m) {
      _mm256_store_ps(factors[m], _mm256_mul_ps(scales, _mm256_loadu_ps(x_scales + m * groups + group)));
    }
    for (int64_t place = 0; place < kTogether; ++place) {
      add(group + place, place);
    }
  }
  for (; group < groups; ++group) {
    for (int m = 0; m < M; ++m) {
      factors[m][0] = one(w_scales + group) * x_scales[m * groups + group];
    }
    add(group, 0);
  }
  for (int m = 0; m < M; ++m) {
    out[m * out_stride] = horizontal_sum(_mm256_add_ps(sum[m][0], sum[m][1]));
  }
}

void int8_product(const Matrix& w, const Inputs& in, int64_t first, int64_t last, float* out, int64_t out_stride) {
  const int64_t groups = w.k / kGroup;
  for (int64_t n = first; n < last; ++n) {
    const int8_t* weights = static_cast<const int8_t*>(w.data) + n * w.k;
    const uint16_t* scales = w.scales + n * groups;
    int64_t m = 0;
    for (; m + 4 <= in.rows; m += 4) {
      int8_row<4>(weights, scales, w.k, in.quantised + m * w.k, in.scales + m * groups, out + m * out_stride + n,
                  out_stride);
    }
    for (; m < in.rows; ++m) {
      int8_row<1>(weights, scales, w.k, in.quantised + m * w.k, in.scales + m * groups, out + m * out_stride + n,
                  out_stride);
    }
  }
}

void product(const Matrix& w, const Inputs& in, int64_t first, int64_t last, float* out, int64_t out_stride) {
  switch (w.precision) {
  case Precision::Float32:
    return floating_product(static_cast<const float*>(w.data), w.k, in, first, last, out, out_stride);
  case Precision::Float16:
    return floating_product(static_cast<const uint16_t*>(w.data), w.k, in, first, last, out, out_stride);
  case Precision::Int8:
    return int8_product(w, in, first, last, out, out_stride);
  }
}

// N vectors of eight elements at a time: their sums stay in registers over all rows.
template <int N, typename T>
inline void weighted(const T* rows, const float* weights, int64_t count, int64_t width, float* out) {
  __m256 sum[N];
  for (int v = 0; v < N; ++v) {
    sum[v] = _mm256_setzero_ps();
  }
  for (int64_t s = 0; s < count; ++s) {
    const __m256 weight = _mm256_set1_ps(weights[s]);
    for (int v = 0; v < N; ++v) {
      sum[v] = _mm256_fmadd_ps(weight, eight(rows + s * width + 8 * v), sum[v]);
    }
  }
  for (int v = 0; v < N; ++v) {
    _mm256_storeu_ps(out + 8 * v, sum[v]);
  }
}

template <typename T>
void weighted_rows(const T* rows, const float* weights, int64_t count, int64_t width, float* out) {
  int64_t d = 0;
  for (; d + 64 <= width; d += 64) {
    weighted<8>(rows + d, weights, count, width, out + d);
  }
  for (; d + 8 <= width; d += 8) {
    weighted<1>(rows + d, weights, count, width, out + d);
  }
  for (; d < width; ++d) {
    out[d] = 0.0f;
    for (int64_t s = 0; s < count; ++s) {
      out[d] += weights[s] * one(rows + s * width + d);
    }
  }
}

void weighted_sum(const void* rows, Precision precision, const float* weights, int64_t count, int64_t width,
                  float* out) {
  if (precision == Precision::Float32) {
    weighted_rows(static_cast<const float*>(rows), weights, count, width, out);
  } else {
    weighted_rows(static_cast<const uint16_t*>(rows), weights, count, width, out);
  }
}

void to_half(const float* x, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = static_cast<uint16_t>(_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(x[i]), _MM_FROUND_TO_NEAREST_INT)));
  }
}

const Kernels fast_kernels = {product,  weighted_sum, softmax, activate,  layer_norm,
                              quantise, to_half,      largest, sum_of_exp};

} // namespace
} // namespace few_rows

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const few_rows::Kernels* few_rows::avx2_kernels() {
  const bool runs = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return runs ? &fast_kernels : nullptr;
}
#else
const few_rows::Kernels* few_rows::avx2_kernels() {
  return nullptr;
}
#endif
