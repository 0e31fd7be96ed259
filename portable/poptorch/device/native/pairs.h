// Operands of bfloat16 as VDPBF16PS takes them: pairs of elements that follow each other along the depth of a product
// lie side by side. For files that are compiled for AVX512_BF16, inside their namespace.

constexpr int64_t kLanes = 16;

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
// are too far apart for the processor to see what is read next: it is told, a block ahead, or where there is only one
// some rows ahead.
template <int64_t Width>
void pack_interleaved(const Matrix& from, int64_t row, int64_t first, int64_t last, int64_t start, int64_t depth,
                      const Packed<Width>& packed) {
  constexpr int64_t kTogether = 4 * kLanes, kDeep = 64, kRowsAhead = 16; // of a block
  const int64_t size = from.narrow ? 2 : 4, ahead = last - first > kTogether ? kTogether : kRowsAhead * row;
  const char* data = static_cast<const char*>(from.data);
  for (int64_t top = 0; top < depth; top += kDeep) {
    for (int64_t block = first; block < last; block += kTogether) {
      for (int64_t k = top; k < std::min(top + kDeep, depth); k += 2) {
        for (int64_t i = block; i < std::min(block + kTogether, last); i += kLanes) {
          const int64_t count = std::min(kLanes, last - i), at = (start + k) * row + i, place = k / 2 * Width;
          _mm_prefetch(data + (at + ahead) * size, _MM_HINT_T0);
          _mm_prefetch(data + (at + row + ahead) * size, _MM_HINT_T0);
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
