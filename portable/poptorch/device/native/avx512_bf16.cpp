// The kernels for x86 processors with AVX512_BF16: those for AVX-512, but for attention over tensors of bfloat16, whose
// products have operands of bfloat16 here. Nothing here runs, or is inlined elsewhere, without the check in
// avx512_bf16_kernels().

#include "kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
// Before the target is changed: what these headers define must stay plain code.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <immintrin.h>
#include <limits>
#include <type_traits>

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

constexpr int kWidth = 16;
constexpr int kRows = 12; // of a tile of a product: 24 sums in 32 registers
typedef uint64_t Wide __attribute__((vector_size(kWidth * 4)));

// The product of the lower 32 bits of each lane and a factor of 32 bits.
ALWAYS_INLINE Wide multiply_low(Wide x, uint64_t factor) {
  return reinterpret_cast<Wide>(
      _mm512_mul_epu32(reinterpret_cast<__m512i>(x), _mm512_set1_epi64(static_cast<int64_t>(factor))));
}

#include "vectors.h"

#include "packing.h"
#include "pairs.h"
#include "tiles.h"

#include "attention.h"

// Operands of bfloat16.
struct Pairs {
  using Number = uint16_t;
  static constexpr bool kScaled = false; // it would be rounded

  static ALWAYS_INLINE Floats spread(const uint16_t* at) {
    int pair;
    std::memcpy(&pair, at, sizeof pair);
    return reinterpret_cast<Floats>(_mm512_set1_epi32(pair));
  }
  static ALWAYS_INLINE Floats lanes(const uint16_t* at) {
    return reinterpret_cast<Floats>(_mm512_loadu_si512(at));
  }
  static ALWAYS_INLINE Floats added(Floats sum, Floats left, Floats right) {
    return reinterpret_cast<Floats>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(left),
                                                     reinterpret_cast<__m512bh>(right)));
  }
  static ALWAYS_INLINE void store(uint16_t* to, Floats x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(x))));
  }

  // (rows, width), one row after the other, with a zero after an odd one.
  static void pack_rows(const uint16_t* from, int64_t stride, int64_t rows, int64_t width, uint16_t* to) {
    const int64_t row = deep<Pairs>(width);
    for (int64_t i = 0; i < rows; ++i) {
      std::copy(from + i * stride, from + i * stride + width, to + i * row);
      std::fill(to + i * row + width, to + (i + 1) * row, 0);
    }
  }

  // (rows, width) as panels of columns: (width / kPanel, rows / 2, kPanel, 2), with zeros after the last column.
  static void pack_panels(const uint16_t* from, int64_t stride, int64_t rows, int64_t width, uint16_t* to) {
    const int64_t size = deep<Pairs>(rows) * kPanel;
    clear_last(width, size, to);
    pack_interleaved<PairWords>(Matrix{from, stride, 1, true}, stride, 0, width, 0, rows,
                                Packed<kPanel>{reinterpret_cast<Word*>(to), 0, size / 2});
  }

  // (rows, width) transposed as panels: (rows / kPanel, width / 2, kPanel, 2), with zeros after the last row.
  static void pack_transposed(const uint16_t* from, int64_t stride, int64_t rows, int64_t width, uint16_t* to) {
    const int64_t size = deep<Pairs>(width) * kPanel;
    clear_last(rows, size, to);
    poptorch_kernels::pack_transposed<PairWords>(Matrix{from, stride, 1, true}, stride, 0, rows, 0, width,
                                                 Packed<kPanel>{reinterpret_cast<Word*>(to), 0, size / 2});
  }

  // The transpose of `rows` of `row` numbers each, `columns` of them: pairs of two rows, (count / 2, row, 2).
  static Left<Pairs> by_columns(const uint16_t* rows, int64_t row, int64_t count, int64_t columns, uint16_t* to) {
    pack_interleaved<PairWords>(Matrix{rows, row, 1, true}, row, 0, columns, 0, count,
                                Packed<kBlock>{reinterpret_cast<Word*>(to), 0, 0});
    return {to, 2, 2 * kBlock};
  }

private:
  static void clear_last(int64_t columns, int64_t size, uint16_t* panels) {
    if (columns % kPanel) {
      uint16_t* last = panels + columns / kPanel * size;
      std::fill(last, last + size, 0);
    }
  }
};

int64_t scratch_size_of(const Attention& call, bool backward) {
  return call.narrow ? scratch_size<Pairs>(call, backward) : avx512_kernels()->scratch_size(call, backward);
}

void forward_by(const Attention& call, int64_t sample, int64_t head, float* scratch) {
  (call.narrow ? forward_of<uint16_t, Pairs> : avx512_kernels()->forward)(call, sample, head, scratch);
}

void backward_by(const Attention& call, int64_t sample, int64_t head, float* scratch) {
  (call.narrow ? backward_of<uint16_t, Pairs> : avx512_kernels()->backward)(call, sample, head, scratch);
}

} // namespace
} // namespace poptorch_kernels

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const poptorch_kernels::Kernels* poptorch_kernels::avx512_bf16_kernels() {
  if (!bfloat16_products() || !avx512_kernels()) {
    return nullptr;
  }
  static const Kernels kernels = [] {
    Kernels those = *avx512_kernels();
    those.name = "avx512_bf16";
    those.scratch_size = scratch_size_of;
    those.forward = forward_by;
    those.backward = backward_by;
    return those;
  }();
  return &kernels;
}
#else
const poptorch_kernels::Kernels* poptorch_kernels::avx512_bf16_kernels() {
  return nullptr;
}
#endif
