// Products of bfloat16 operands with float32 sums, for x86 processors with AVX512_BF16. Nothing here runs, or is
// inlined elsewhere, without the check in multiply_bfloat16().
//
// Operands are rounded and packed on the way in: pairs of elements that follow each other along the depth lie side by
// side, as VDPBF16PS takes them. The left one lies in strips of kRows rows, (depth / 2, kRows, 2), the right one in
// panels of kColumns columns, (depth / 2, kColumns, 2). A thread packs a panel and multiplies all strips with it while
// it is in the second cache (Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008).

#include "kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
// Before the target is changed: what these headers define must stay plain code.
#include <algorithm>
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))),                 \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace poptorch_kernels {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kRows = 8;                    // of a strip
constexpr int64_t kVectors = 3;                 // of a panel: 24 sums in 32 registers
constexpr int64_t kColumns = kVectors * kLanes; // of a panel
constexpr int64_t kDepth = 1024;                // added up before the sums go to memory: a panel takes 96 KB
constexpr int64_t kPackedRows = 2048;           // of the left operand: 4 MB

typedef uint32_t Pair; // two elements of bfloat16

// 32 elements of bfloat16 from `at` on, of which there are `count`; zeros after them.
ALWAYS_INLINE __m512i narrow(const Matrix& from, int64_t at, int64_t count) {
  if (from.narrow) {
    const __mmask32 mask = count >= 32 ? ~0u : (1u << std::max<int64_t>(count, 0)) - 1;
    return _mm512_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(from.data) + at);
  }
  const float* data = static_cast<const float*>(from.data) + at;
  const __mmask16 first = static_cast<__mmask16>((1u << std::clamp<int64_t>(count, 0, 16)) - 1);
  const __mmask16 second = static_cast<__mmask16>((1u << std::clamp<int64_t>(count - 16, 0, 16)) - 1);
  return reinterpret_cast<__m512i>(
      _mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(second, data + 16), _mm512_maskz_loadu_ps(first, data)));
}

// Where an operand's packed elements go. An item is a row of the left operand, or a column of the right one: the first
// pair of the `origin`th one lies at to[0], those of the next Width - 1 follow it, and the second pairs follow these.
template <int64_t Width> struct Packed {
  Pair* to;
  int64_t origin, size; // `size` pairs after that of an item lies that of the Width-th after it

  Pair* at(int64_t item) const {
    return to + (item - origin) / Width * size + (item - origin) % Width;
  }
};

// Items `first` ... `last` - 1 whose elements follow each other along the depth, `depth` of them from `start` on.
template <int64_t Width>
void pack_transposed(const Matrix& from, int64_t item, int64_t first, int64_t last, int64_t start, int64_t depth,
                     const Packed<Width>& packed) {
  for (int64_t i = first; i < last; i += 8) {
    for (int64_t k = 0; k < depth; k += 32) {
      __m512i rows[8], twos[8];
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        const int64_t count = i + j < last ? depth - k : 0;
        rows[j] = narrow(from, count ? (i + j) * item + start + k : 0, count);
      }
#pragma GCC unroll 4
      for (int j = 0; j < 8; j += 2) {
        twos[j] = _mm512_unpacklo_epi32(rows[j], rows[j + 1]);
        twos[j + 1] = _mm512_unpackhi_epi32(rows[j], rows[j + 1]);
      }
      // Lane l of quarters[q][h] has pair 4 l + q of the items 4 h to 4 h + 3.
      __m512i quarters[4][2];
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        quarters[0][h] = _mm512_unpacklo_epi64(twos[4 * h], twos[4 * h + 2]);
        quarters[1][h] = _mm512_unpackhi_epi64(twos[4 * h], twos[4 * h + 2]);
        quarters[2][h] = _mm512_unpacklo_epi64(twos[4 * h + 1], twos[4 * h + 3]);
        quarters[3][h] = _mm512_unpackhi_epi64(twos[4 * h + 1], twos[4 * h + 3]);
      }
      const int64_t pairs = (std::min<int64_t>(32, depth - k) + 1) / 2;
      Pair* to = packed.at(i) + k / 2 * Width;
      for (int64_t p = 0; p < pairs; ++p, to += Width) {
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          const __m128i* lanes = reinterpret_cast<const __m128i*>(&quarters[p % 4][h]);
          _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 4 * h), lanes[p / 4]);
        }
      }
    }
  }
}

// Up to 16 pairs of elements of two rows: 16 elements of the one from `at` on, of which there are `count`, and as many
// of the other, which lies `row` after it, or zeros if there is no other one.
ALWAYS_INLINE __m512i interleaved(const Matrix& from, int64_t at, int64_t row, int64_t count, bool other) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1), second = other ? mask : 0;
  if (from.narrow) {
    const uint16_t* data = static_cast<const uint16_t*>(from.data) + at;
    const __m256i low = _mm256_maskz_loadu_epi16(mask, data), high = _mm256_maskz_loadu_epi16(second, data + row);
    return _mm512_permutexvar_epi16(order, _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
  }
  const float* data = static_cast<const float*>(from.data) + at;
  const __m512 low = _mm512_maskz_loadu_ps(mask, data), high = _mm512_maskz_loadu_ps(second, data + row);
  return _mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
}

// Items `first` ... `last` - 1, which follow each other, while their elements lie `row` apart along the depth. The rows
// are too far apart for the processor to see what is read next: it is told, a block ahead.
template <int64_t Width>
void pack_interleaved(const Matrix& from, int64_t row, int64_t first, int64_t last, int64_t start, int64_t depth,
                      const Packed<Width>& packed) {
  constexpr int64_t kTogether = 4 * kLanes, kDeep = 64; // of a block
  const int64_t size = from.narrow ? 2 : 4;
  const char* data = static_cast<const char*>(from.data);
  for (int64_t top = 0; top < depth; top += kDeep) {
    for (int64_t block = first; block < last; block += kTogether) {
      for (int64_t k = top; k < std::min(top + kDeep, depth); k += 2) {
        for (int64_t i = block; i < std::min(block + kTogether, last); i += kLanes) {
          const int64_t count = std::min(kLanes, last - i), at = (start + k) * row + i, place = k / 2 * Width;
          _mm_prefetch(data + (at + kTogether) * size, _MM_HINT_T0);
          _mm_prefetch(data + (at + row + kTogether) * size, _MM_HINT_T0);
          const __m512i pairs = interleaved(from, at, row, count, k + 1 < depth);
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(packed.at(i) + place), _mm512_castsi512_si256(pairs));
          if (count > 8) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(packed.at(i + 8) + place),
                                _mm512_extracti64x4_epi64(pairs, 1));
          }
        }
      }
    }
  }
}

// Items are rows of the left operand and columns of the right one: `item` and `along` are the strides.
template <int64_t Width>
void pack(const Matrix& from, int64_t item, int64_t along, int64_t first, int64_t last, int64_t start, int64_t depth,
          const Packed<Width>& packed) {
  if (along == 1) {
    pack_transposed(from, item, first, last, start, depth, packed);
  } else {
    pack_interleaved(from, along, first, last, start, depth, packed);
  }
}

// out (rows, columns) (+)= strip times panel, of `pairs` pairs.
ALWAYS_INLINE void tile(const Pair* strip, const Pair* panel, int64_t pairs, bool add, float* out, int64_t out_row,
                        int64_t rows, int64_t columns) {
  __m512 sum[kRows][kVectors];
  __mmask16 mask[kVectors];
#pragma GCC unroll 3
  for (int n = 0; n < kVectors; ++n) {
    mask[n] = static_cast<__mmask16>((1u << std::clamp<int64_t>(columns - n * kLanes, 0, kLanes)) - 1);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 3
    for (int n = 0; n < kVectors; ++n) {
      sum[i][n] = _mm512_setzero_ps();
      if (i < rows) {
        _mm_prefetch(reinterpret_cast<const char*>(out + i * out_row + n * kLanes), _MM_HINT_T0);
      }
    }
  }
  for (int64_t p = 0; p < pairs; ++p, strip += kRows, panel += kColumns) {
    __m512bh right[kVectors];
#pragma GCC unroll 3
    for (int n = 0; n < kVectors; ++n) {
      right[n] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(panel + n * kLanes));
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const __m512bh left = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(strip[i])));
#pragma GCC unroll 3
      for (int n = 0; n < kVectors; ++n) {
        sum[i][n] = _mm512_dpbf16_ps(sum[i][n], left, right[n]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
    if (i >= rows) {
      break;
    }
#pragma GCC unroll 3
    for (int n = 0; n < kVectors; ++n) {
      float* to = out + i * out_row + n * kLanes;
      const __m512 before = add ? _mm512_maskz_loadu_ps(mask[n], to) : _mm512_setzero_ps();
      _mm512_mask_storeu_ps(to, mask[n], sum[i][n] + before);
    }
  }
}

// Pairs of a strip and a cache line: strips that are written to in turn must not all fall into the same sets of a
// cache.
inline int64_t strip_size(const Part& part) {
  return (part.depth + 1) / 2 * kRows + kLanes;
}

void pack_left(const Product& call, const Part& part, int64_t first, int64_t last) {
  pack(call.left, call.left.row, call.left.column, part.row + first, part.row + last, part.start, part.depth,
       Packed<kRows>{static_cast<Pair*>(call.packed), part.row, strip_size(part)});
}

void multiply(const Product& call, const Part& part, int64_t first, int64_t last, int64_t column, void* scratch) {
  const int64_t pairs = (part.depth + 1) / 2, columns = std::min(kColumns, call.columns - column);
  Pair* panel = static_cast<Pair*>(scratch);
  pack(call.right, call.right.column, call.right.row, column, column + columns, part.start, part.depth,
       Packed<kColumns>{panel, column, 0});
  for (int64_t i = first; i < last; i += kRows) {
    const Pair* strip = static_cast<const Pair*>(call.packed) + i / kRows * strip_size(part);
    tile(strip, panel, pairs, call.add || part.start > 0, call.out + (part.row + i) * call.out_row + column,
         call.out_row, std::min(kRows, last - i), columns);
  }
}

int64_t left_bytes(const Product& call) {
  const int64_t strips = (std::min(kPackedRows, call.rows) + kRows - 1) / kRows;
  return strips * strip_size({0, 0, std::min(kDepth, call.depth)}) * static_cast<int64_t>(sizeof(Pair));
}

constexpr int64_t kPanelBytes = kDepth / 2 * kColumns * static_cast<int64_t>(sizeof(Pair));
const Bfloat16Products products = {kRows, kColumns, kPackedRows, kDepth, kPanelBytes, left_bytes, pack_left, multiply};

} // namespace
} // namespace poptorch_kernels

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const poptorch_kernels::Bfloat16Products* poptorch_kernels::bfloat16_products() {
  const bool runs = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512bf16");
  return runs ? &products : nullptr;
}
#else
const poptorch_kernels::Bfloat16Products* poptorch_kernels::bfloat16_products() {
  return nullptr;
}
#endif
