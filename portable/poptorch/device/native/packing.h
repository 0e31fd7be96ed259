// How operands lie for products by vectors: in words of 32 bits, which are an element of float32 or a pair of bfloat16
// elements that follow each other along the depth of the product. Included in the namespace of files that are compiled
// for AVX-512, after a header with their words:
//     kElements   elements in a word along the depth
//     along()     16 words of one row: of elements that follow each other
//     across()    a word of each of 16 items that follow each other: their elements are a row apart along the depth

constexpr int64_t kLanes = 16;

typedef uint32_t Word;

// Where an operand's words go. An item is a row of the left operand, or a column of the right one: the first word of
// the `origin`th one lies at to[0], those of the next Width - 1 follow it, and the second words follow these.
template <int64_t Width> struct Packed {
  Word* to;
  int64_t origin, size; // `size` words after that of an item lies that of the Width-th after it

  Word* at(int64_t item) const {
    return to + (item - origin) / Width * size + (item - origin) % Width;
  }
};

// Items `first` ... `last` - 1 whose elements follow each other along the depth, `depth` of them from `start` on.
template <typename Words, int64_t Width>
void pack_transposed(const Matrix& from, int64_t item, int64_t first, int64_t last, int64_t start, int64_t depth,
                     const Packed<Width>& packed) {
  constexpr int64_t kDeep = kLanes * Words::kElements;
  for (int64_t i = first; i < last; i += 8) {
    for (int64_t k = 0; k < depth; k += kDeep) {
      __m512i rows[8], twos[8];
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        const int64_t count = i + j < last ? depth - k : 0;
        rows[j] = Words::along(from, count ? (i + j) * item + start + k : 0, count);
      }
#pragma GCC unroll 4
      for (int j = 0; j < 8; j += 2) {
        twos[j] = _mm512_unpacklo_epi32(rows[j], rows[j + 1]);
        twos[j + 1] = _mm512_unpackhi_epi32(rows[j], rows[j + 1]);
      }
      // Lane l of quarters[q][h] has word 4 l + q of the items 4 h to 4 h + 3.
      __m512i quarters[4][2];
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        quarters[0][h] = _mm512_unpacklo_epi64(twos[4 * h], twos[4 * h + 2]);
        quarters[1][h] = _mm512_unpackhi_epi64(twos[4 * h], twos[4 * h + 2]);
        quarters[2][h] = _mm512_unpacklo_epi64(twos[4 * h + 1], twos[4 * h + 3]);
        quarters[3][h] = _mm512_unpackhi_epi64(twos[4 * h + 1], twos[4 * h + 3]);
      }
      const int64_t words = (std::min(kDeep, depth - k) + Words::kElements - 1) / Words::kElements;
      Word* to = packed.at(i) + k / Words::kElements * Width;
      for (int64_t p = 0; p < words; ++p, to += Width) {
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          const __m128i* lanes = reinterpret_cast<const __m128i*>(&quarters[p % 4][h]);
          _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 4 * h), lanes[p / 4]);
        }
      }
    }
  }
}

// Items `first` ... `last` - 1, which follow each other, while their elements lie `row` apart along the depth. The rows
// are too far apart for the processor to see what is read next: it is told, a block ahead, or where there is only one
// some rows ahead.
template <typename Words, int64_t Width>
void pack_interleaved(const Matrix& from, int64_t row, int64_t first, int64_t last, int64_t start, int64_t depth,
                      const Packed<Width>& packed) {
  constexpr int64_t kTogether = 4 * kLanes, kDeep = 64, kRowsAhead = 16; // of a block
  const int64_t size = from.narrow ? 2 : 4, ahead = last - first > kTogether ? kTogether : kRowsAhead * row;
  const char* data = static_cast<const char*>(from.data);
  for (int64_t top = 0; top < depth; top += kDeep) {
    for (int64_t block = first; block < last; block += kTogether) {
      for (int64_t k = top; k < std::min(top + kDeep, depth); k += Words::kElements) {
        for (int64_t i = block; i < std::min(block + kTogether, last); i += kLanes) {
          const int64_t count = std::min(kLanes, last - i), at = (start + k) * row + i,
                        place = k / Words::kElements * Width;
          for (int64_t j = 0; j < Words::kElements; ++j) {
            _mm_prefetch(data + (at + j * row + ahead) * size, _MM_HINT_T0);
          }
          const __m512i words = Words::across(from, at, row, count, k + 1 < depth);
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(packed.at(i) + place), _mm512_castsi512_si256(words));
          if (count > 8) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(packed.at(i + 8) + place),
                                _mm512_extracti64x4_epi64(words, 1));
          }
        }
      }
    }
  }
}

// Items are rows of the left operand and columns of the right one: `item` and `along` are the strides.
template <typename Words, int64_t Width>
void pack(const Matrix& from, int64_t item, int64_t along, int64_t first, int64_t last, int64_t start, int64_t depth,
          const Packed<Width>& packed) {
  if (along == 1) {
    pack_transposed<Words>(from, item, first, last, start, depth, packed);
  } else {
    pack_interleaved<Words>(from, along, first, last, start, depth, packed);
  }
}
