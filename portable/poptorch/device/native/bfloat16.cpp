// Products of bfloat16 operands with float32 sums, for x86 processors with AVX512_BF16. Nothing here runs, or is
// inlined elsewhere, without the check in multiply_bfloat16().
//
// Operands are rounded and packed on the way in. The left one lies in strips of kRows rows, (depth / 2, kRows, 2), the
// right one in panels of kColumns columns, (depth / 2, kColumns, 2). A thread packs a panel and multiplies all strips
// with it while it is in the second cache (Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication",
// 2008).

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

#include "pairs.h"

constexpr int64_t kRows = 8;                    // of a strip
constexpr int64_t kVectors = 3;                 // of a panel: 24 sums in 32 registers
constexpr int64_t kColumns = kVectors * kLanes; // of a panel
constexpr int64_t kDepth = 1024;                // added up before the sums go to memory: a panel takes 96 KB
constexpr int64_t kPackedRows = 2048;           // of the left operand: 4 MB

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
