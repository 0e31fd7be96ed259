// Operands of bfloat16 as VDPBF16PS takes them: words (packing.h) of two elements that follow each other along the
// depth of a product. For files that are compiled for AVX512_BF16, inside their namespace.

struct PairWords {
  static constexpr int64_t kElements = 2;

  // 32 elements of bfloat16 from `at` on, of which there are `count`; zeros after them.
  static ALWAYS_INLINE __m512i along(const Matrix& from, int64_t at, int64_t count) {
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

  // Up to 16 pairs of elements of two rows: 16 elements of the one from `at` on, of which there are `count`, and as
  // many of the other, which lies `row` after it, or zeros if there is no other one.
  static ALWAYS_INLINE __m512i across(const Matrix& from, int64_t at, int64_t row, int64_t count, bool other) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
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

  // sum + left right: both elements of a word, lane by lane.
  static ALWAYS_INLINE __m512 added(__m512 sum, __m512i left, __m512i right) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(left), reinterpret_cast<__m512bh>(right));
  }
};
