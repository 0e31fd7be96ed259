// Matrix products with float32 sums by AVX-512, of operands in words (packing.h, which is included before). Words have
// for this, too:
//     added()     sum + left right, lane by lane
//
// Operands are packed on the way in. The left one lies in strips of kRows rows, (words, kRows), the right one in panels
// of kColumns columns, (words, kColumns). A thread packs a panel and multiplies all strips with it while it is in the
// second cache (Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008). Meanwhile the
// columns of the next panel come from memory, if they follow each other there: of few rows that would take as long as
// half of the product.

constexpr int64_t kRows = 8;                    // of a strip
constexpr int64_t kVectors = 3;                 // of a panel: 24 sums in 32 registers
constexpr int64_t kColumns = kVectors * kLanes; // of a panel
constexpr int64_t kDepth = 512;                 // words added up before the sums go to memory: a panel takes 96 KB
constexpr int64_t kPackedRows = 2048;           // of the left operand: 4 MB

// out (rows, columns) (+)= strip times panel, of `depth` words. What lies at `ahead`, and with each word `step` bytes
// further on, is brought into the second cache.
template <typename Words>
ALWAYS_INLINE void tile(const Word* strip, const Word* panel, int64_t depth, bool add, float* out, int64_t out_row,
                        int64_t rows, int64_t columns, const char* ahead, int64_t step) {
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
  for (int64_t k = 0; k < depth; ++k, strip += kRows, panel += kColumns, ahead += step) {
    _mm_prefetch(ahead, _MM_HINT_T1);
    __m512i right[kVectors];
#pragma GCC unroll 3
    for (int n = 0; n < kVectors; ++n) {
      right[n] = _mm512_loadu_si512(panel + n * kLanes);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const __m512i left = _mm512_set1_epi32(static_cast<int>(strip[i]));
#pragma GCC unroll 3
      for (int n = 0; n < kVectors; ++n) {
        sum[i][n] = Words::added(sum[i][n], left, right[n]);
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

template <typename Words> int64_t words(int64_t depth) {
  return (depth + Words::kElements - 1) / Words::kElements;
}

// Words of a strip and a cache line: strips that are written to in turn must not all fall into the same sets of a
// cache.
template <typename Words> int64_t strip_size(int64_t depth) {
  return words<Words>(depth) * kRows + kLanes;
}

template <typename Words> void pack_left(const Product& call, const Part& part, int64_t first, int64_t last) {
  pack<Words>(call.left, call.left.row, call.left.column, part.row + first, part.row + last, part.start, part.depth,
              Packed<kRows>{static_cast<Word*>(call.packed), part.row, strip_size<Words>(part.depth)});
}

// Where the columns from `column` on, of one panel, follow each other without a gap, and how many bytes they take; 0
// where they do not, or where there are none.
struct Stretch {
  const char* data;
  int64_t bytes;
};
Stretch stretch_of(const Matrix& right, const Part& part, int64_t column, int64_t columns) {
  if (right.row != 1 || right.column != part.depth || column >= columns) {
    return {nullptr, 0};
  }
  const int64_t size = right.column * (right.narrow ? 2 : 4);
  return {static_cast<const char*>(right.data) + column * size, std::min(kColumns, columns - column) * size};
}

template <typename Words>
void multiply(const Product& call, const Part& part, int64_t first, int64_t last, int64_t column, void* scratch) {
  const int64_t columns = std::min(kColumns, call.columns - column);
  Word* panel = static_cast<Word*>(scratch);
  pack<Words>(call.right, call.right.column, call.right.row, column, column + columns, part.start, part.depth,
              Packed<kColumns>{panel, column, 0});
  const int64_t depth = words<Words>(part.depth), strips = (last - first + kRows - 1) / kRows;
  const Stretch next = part.ahead ? stretch_of(call.right, part, column + part.ahead, call.columns) : Stretch{};
  const int64_t step = next.bytes / (strips * depth);
  for (int64_t i = first; i < last; i += kRows) {
    const Word* strip = static_cast<const Word*>(call.packed) + i / kRows * strip_size<Words>(part.depth);
    const char* ahead = step ? next.data + (i - first) / kRows * depth * step : reinterpret_cast<const char*>(strip);
    tile<Words>(strip, panel, depth, call.add || part.start > 0, call.out + (part.row + i) * call.out_row + column,
                call.out_row, std::min(kRows, last - i), columns, ahead, step);
  }
}

template <typename Words> int64_t left_bytes(const Product& call) {
  const int64_t strips = (std::min(kPackedRows, call.rows) + kRows - 1) / kRows;
  return strips * strip_size<Words>(std::min(kDepth * Words::kElements, call.depth)) *
         static_cast<int64_t>(sizeof(Word));
}

constexpr int64_t kPanelBytes = kDepth * kColumns * static_cast<int64_t>(sizeof(Word));

template <typename Words>
constexpr Products products = {kRows,       kColumns,          kPackedRows,      kDepth * Words::kElements,
                               kPanelBytes, left_bytes<Words>, pack_left<Words>, multiply<Words>};
