// Products of a matrix with few rows, and what attention needs, over vectors of a processor.
//
// A file that includes this is compiled for such a processor and defines what it has:
//   Floats, kWidth              a vector of float32 and how many it holds
//   load, one                   kWidth weights, or one, of either type as float32
//   multiply_add(a, b, c)       a b + c, rounded once
//   four_sums(a, b, c, d)       the sum of each, all in one order
//   Bytes, kTogether            a vector of int8 and how many groups of weights it holds
//   load_bytes, load_scales     a vector, or of it what belongs to so many groups and zeros behind them
//   Factors                     scales of kWidth groups, and those of kTogether of them in the lanes of their products
//   PreparedBytes               weights, and their products with inputs
//   kLead                       how far ahead of a single input row's weights to prefetch, in bytes, of one matrix
//                               row at a time, which is one stream. Or 0
//   kFloatingRows               matrix rows in a block of float32 or float16, with one input row, with two, ...: as
//                               many entries as a pass has input rows at most
//   kQuantisedRows              the same of int8
//   kept(a)                     a, which is used several times, in a register: compilers would read it again from
//                               memory for each use
// Everything has internal linkage: each file that includes this gets code of its own.
#pragma once

#include "few_rows_math.h"

namespace few_rows {
namespace {

// What is read ahead while it is computed with weights that are at hand: as many bytes, evenly over kPasses passes.
// Both together then take the time of the slower of the two, not of both. They are read into the L2 cache: in L1 they
// would push out what is computed with, and the processor, which sees one stream of them, follows it far ahead by
// itself.
template <int kPasses> struct Ahead {
  const char* next;

  void begin(const char*) { // a block, with what lies there after it
  }

  // `kBytes` of each of R rows of weights, which are `apart`, are about to be used, the first from `weights` on.
  template <int R, int64_t kBytes> void fetch(const char*, int64_t) {
    constexpr int64_t kShare = R * kBytes / kPasses;
    for (int64_t byte = 0; byte < kShare; byte += 64) {
      _mm_prefetch(next + byte, _MM_HINT_T1);
    }
    next += kShare;
  }
};

// Where memory is the limit processors follow their streams by themselves, and on some instructions that prefetch cost
// up to a third of the speed. Others leave some of it: see kLead.
struct NothingAhead {
  template <int, int64_t> void fetch(const char*, int64_t) {
  }
};

// With many input rows the weights of a block are used slowly. Those of the next block are read into the L2 cache in
// the meantime, the same place of each row, and those that follow in this one into L1.
//
// Where all come from memory (`kPaced`) that is the limit, and a processor that looks far ahead then waits for the next
// weights with as many loads as it can have under way, none of which is left for what is to be read after them. Some
// instructions that do nothing keep it back: with these products of eight rows take 6 % less time on Zen 5 where memory
// gives 55 GB/s. Weights that come from a cache do not get them: there they would cost 40 %.
template <bool kPaced> struct NextBlock {
  const char* next = nullptr;

  void begin(const char* after) {
    next = after;
  }

  template <int R, int64_t kBytes> void fetch(const char* weights, int64_t apart) {
    for (int r = 0; r < R; ++r) {
      for (int64_t byte = 0; byte < kBytes; byte += 64) {
        _mm_prefetch(next + r * apart + byte, _MM_HINT_T1);
        _mm_prefetch(weights + r * apart + byte + kNear, _MM_HINT_T0);
      }
    }
    next += kBytes;
    if constexpr (kPaced) {
      asm volatile(".rept %c0\n\tnop\n\t.endr" : : "i"(R * 21));
    }
  }

private:
  static constexpr int64_t kNear = 512; // bytes; 256 to 1,024 are as good
};

// f(0), f(1), ... f(N - 1), with constants: what they index stays in registers.
template <typename F, int... I> [[gnu::always_inline]] inline void each(const F& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>()), ...);
}
template <int N, typename F> [[gnu::always_inline]] inline void each(const F& f) {
  each(f, std::make_integer_sequence<int, N>());
}

// The sums of R matrix rows, which are `apart`, and M input rows, into their places.
template <int R, int M> inline void store(const Floats (&sum)[M][R], int64_t apart, float* out, int64_t out_stride) {
  constexpr int kSums = M * R;
  alignas(16) float sums[(kSums + 3) / 4 * 4];
  each<(kSums + 3) / 4>([&](auto four) __attribute__((always_inline)) {
    const auto at = [&sum](auto i) {
      if constexpr (i < kSums) {
        return sum[i / R][i % R];
      } else {
        return Floats{};
      }
    };
    constexpr int i = 4 * four;
    _mm_store_ps(sums + i,
                 four_sums(at(std::integral_constant<int, i>()), at(std::integral_constant<int, i + 1>()),
                           at(std::integral_constant<int, i + 2>()), at(std::integral_constant<int, i + 3>())));
  });
  for (int m = 0; m < M; ++m) {
    if (M > 1) { // the matrix rows lie side by side
      std::memcpy(out + m * out_stride, sums + m * R, R * sizeof(float));
    } else {
      for (int r = 0; r < R; ++r) {
        out[r * apart] = sums[r];
      }
    }
  }
}

// A matrix of float32 or float16.
template <typename T> struct Floating {
  static constexpr const auto& kRows = kFloatingRows;

  const T* weights;
  int64_t k;

  // Whether M input rows are more than the L1 cache has room for.
  template <int M> bool is_deep() const {
    return M * k * sizeof(float) > (64 << 10);
  }

  // R matrix rows from row n on, `apart` from each other, times M input rows from row m on: R M sums, each over k in
  // one order, whatever R and M.
  template <int R, int M, typename Reading>
  void block(int64_t n, int64_t apart, const Inputs& in, int64_t m, float* out, int64_t out_stride,
             Reading& ahead) const {
    Floats sum[M][R] = {};
    add<R, M>(sum, n, apart, in, m, 0, whole(), ahead);
    finish<R, M>(sum, n, apart, in, m, out, out_stride);
  }

  // The same of matrix rows first ... last - 1, side by side, with `next` after them, and of input rows that would come
  // from the L2 cache for every block: a piece of these at a time is multiplied with kDeepRows matrix rows.
  template <int R, int M, typename Reading>
  void deep(int64_t first, int64_t last, const Inputs& in, int64_t m, float* out, int64_t out_stride, Reading& ahead,
            const char* next) const {
    for (int64_t n = first; n < last; n += kDeepRows) {
      const int64_t count = std::min(kDeepRows, last - n);
      const char* after = n + count < last ? at(n + count) : next;
      Floats sums[kDeepRows][M] = {}; // of one block after the other
      const auto blocks = [&](const auto& f) {
        int64_t row = 0;
        for (; row + R <= count; row += R) {
          f(std::integral_constant<int, R>(), row, reinterpret_cast<Floats(&)[M][R]>(sums[row]));
        }
        for (; row < count; ++row) {
          f(std::integral_constant<int, 1>(), row, reinterpret_cast<Floats(&)[M][1]>(sums[row]));
        }
      };
      for (int64_t from = 0; from < whole(); from += kPiece) {
        blocks([&](auto size, int64_t row, auto& sum) {
          ahead.begin(after + (row * k + from) * sizeof(T));
          add<size, M>(sum, n + row, 1, in, m, from, std::min(whole(), from + kPiece), ahead);
        });
      }
      blocks([&](auto size, int64_t row, auto& sum) {
        finish<size, M>(sum, n + row, 1, in, m, out + n - first + row, out_stride);
      });
    }
  }

  const char* at(int64_t n) const {
    return reinterpret_cast<const char*>(weights + n * k);
  }

private:
  static constexpr int64_t kDeepRows = 12; // a multiple of kFloatingRows
  static constexpr int64_t kPiece = 256;   // columns; 128 to 384 are as good

  int64_t whole() const { // columns in whole vectors
    return k / kWidth * kWidth;
  }

  // The share of columns [from, to).
  template <int R, int M, typename Reading>
  [[gnu::always_inline]] void add(Floats (&sums)[M][R], int64_t n, int64_t apart, const Inputs& in, int64_t m,
                                  int64_t from, int64_t to, Reading& ahead) const {
    const T* w = weights + n * k;
    const float* x = in.x + m * in.stride;
    Floats sum[M][R];
    each<M>([&](auto m) __attribute__((always_inline)) {
      each<R>([&](auto r) __attribute__((always_inline)) { sum[m][r] = sums[m][r]; });
    });
    Reading reading = ahead;
    for (int64_t i = from; i < to; i += kWidth) {
      reading.template fetch<R, kWidth * sizeof(T)>(reinterpret_cast<const char*>(w + i), apart * k * sizeof(T));
      Floats part[R];
      each<R>([&](auto r) __attribute__((always_inline)) { part[r] = load(w + r * apart * k + i); });
      each<M>([&](auto m) __attribute__((always_inline)) {
        const Floats inputs = R > 1 ? kept(load(x + m * in.stride + i)) : load(x + m * in.stride + i);
        each<R>([&](auto r) __attribute__((always_inline)) { sum[m][r] = multiply_add(part[r], inputs, sum[m][r]); });
      });
    }
    ahead = reading;
    each<M>([&](auto m) __attribute__((always_inline)) {
      each<R>([&](auto r) __attribute__((always_inline)) { sums[m][r] = sum[m][r]; });
    });
  }

  template <int R, int M>
  void finish(const Floats (&sum)[M][R], int64_t n, int64_t apart, const Inputs& in, int64_t m, float* out,
              int64_t out_stride) const {
    store<R, M>(sum, apart, out, out_stride);
    const T* w = weights + n * k;
    const float* x = in.x + m * in.stride;
    for (int64_t i = whole(); i < k; ++i) { // rounded once, as above: not for the compiler to choose in each R, M
      for (int m = 0; m < M; ++m) {
        for (int r = 0; r < R; ++r) {
          float& total = out[m * out_stride + r * apart];
          total = std::fma(one(w + r * apart * k + i), x[m * in.stride + i], total);
        }
      }
    }
  }
};

// A matrix of int8 in groups that have a scale each. The products of a group are added up as whole numbers, four of
// them in a lane: they are exact.
struct Quantised {
  static constexpr const auto& kRows = kQuantisedRows;

  const int8_t* weights;
  const uint16_t* scales;
  int64_t k;

  template <int R, int M, typename Reading>
  void block(int64_t n, int64_t apart, const Inputs& in, int64_t m, float* out, int64_t out_stride,
             Reading& ahead) const {
    const int64_t groups = k / kGroup;
    const int8_t *w = weights + n * k, *x = in.quantised + m * in.quantised_stride;
    const uint16_t* w_scales = scales + n * groups;
    const float* x_scales = in.scales + m * groups;
    Floats sum[M][R] = {};
    Reading reading = ahead;
    for (int64_t first = 0; first < groups; first += kWidth) { // the scales of as many groups are multiplied at once
      const int64_t count = std::min<int64_t>(kWidth, groups - first);
      Factors factors[M][R];
      for (int r = 0; r < R; ++r) {
        const Floats of_weights = load_scales(w_scales + r * apart * groups + first, count);
        for (int m = 0; m < M; ++m) {
          factors[m][r] = Factors(of_weights * load_scales(x_scales + m * groups + first, count));
        }
      }
      const auto add = [&](int64_t place, auto together) {
        reading.template fetch<R, together * kGroup>(reinterpret_cast<const char*>(w + (first + place) * kGroup),
                                                     apart * k);
        PreparedBytes part[R];
        for (int r = 0; r < R; ++r) {
          part[r] = PreparedBytes(load_bytes<together>(w + r * apart * k + (first + place) * kGroup));
        }
        for (int m = 0; m < M; ++m) {
          const Bytes inputs = load_bytes<together>(x + m * in.quantised_stride + (first + place) * kGroup);
          for (int r = 0; r < R; ++r) {
            sum[m][r] = multiply_add(part[r].products(inputs), factors[m][r].at(place), sum[m][r]);
          }
        }
      };
      int64_t place = 0;
      for (; place + kTogether <= count; place += kTogether) {
        add(place, std::integral_constant<int, kTogether>());
      }
      if (place < count) {
        add(place, std::integral_constant<int, 1>());
      }
    }
    ahead = reading;
    store<R, M>(sum, apart, out, out_stride);
  }

  const char* at(int64_t n) const {
    return reinterpret_cast<const char*>(weights + n * k);
  }
};

// Matrix rows first ... last - 1 times one input row, read as R streams, each of as many of them, which the processor
// fetches ahead by itself.
template <int R, typename Weights, typename Reading>
inline void streams(const Weights& w, int64_t first, int64_t last, const Inputs& in, float* out, Reading& ahead) {
  const int64_t apart = (last - first) / R;
  int64_t n = first;
  for (; n < first + apart; ++n) {
    w.template block<R, 1>(n, apart, in, 0, out + n, 0, ahead);
  }
  for (n = first + R * apart; n < last; ++n) {
    w.template block<1, 1>(n, 1, in, 0, out + n, 0, ahead);
  }
}

// Matrix rows first ... last - 1 times M input rows from row m on, R at a time, and `next` after them.
template <int R, int M, typename Weights, typename Reading>
inline void rows(const Weights& w, int64_t first, int64_t last, const Inputs& in, int64_t m, float* out,
                 int64_t out_stride, Reading& ahead, const char* next) {
  int64_t n = first;
  const auto after = [&](int64_t count) { return n + count < last ? w.at(n + count) : next; };
  if constexpr (!std::is_same_v<Weights, Quantised>) { // whose inputs are small
    if (w.template is_deep<M>()) {
      return w.template deep<R, M>(first, last, in, m, out + m * out_stride + first, out_stride, ahead, next);
    }
  }
  for (; n + R <= last; n += R) {
    ahead.begin(after(R));
    w.template block<R, M>(n, 1, in, m, out + m * out_stride + n, out_stride, ahead);
  }
  for (; n < last; ++n) {
    ahead.begin(after(1));
    w.template block<1, M>(n, 1, in, m, out + m * out_stride + n, out_stride, ahead);
  }
}

// `count` input rows, from row m on: 2 or more, and as many as there are in a pass at most.
template <int M, typename Weights, typename Reading>
inline void pass(int64_t count, const Weights& w, int64_t first, int64_t last, const Inputs& in, int64_t m, float* out,
                 int64_t out_stride, Reading& ahead, const char* next) {
  if constexpr (M <= std::size(Weights::kRows)) {
    if (count == M) {
      rows<Weights::kRows[M - 1], M>(w, first, last, in, m, out, out_stride, ahead, next);
    } else {
      pass<M + 1>(count, w, first, last, in, m, out, out_stride, ahead, next);
    }
  }
}

template <typename Weights>
void product(const Weights& w, bool from_memory, const Inputs& in, int64_t first, int64_t last, float* out,
             int64_t out_stride, const char* next) {
  const int64_t most = std::size(Weights::kRows), passes = (in.rows + most - 1) / most;
  if (in.rows == 1) {
    if constexpr (kLead > 0) {
      Ahead<1> ahead{w.at(first) + kLead};
      streams<Weights::kRows[0]>(w, first, last, in, out, ahead);
    } else {
      NothingAhead nothing;
      streams<Weights::kRows[0]>(w, first, last, in, out, nothing);
    }
  } else if (passes == 1 && in.rows > 4 && sizeof *w.weights == 4) { // others' arithmetic takes longer than reading
    if (from_memory) {
      NextBlock<true> ahead;
      pass<2>(in.rows, w, first, last, in, 0, out, out_stride, ahead, next);
    } else {
      NextBlock<false> ahead;
      pass<2>(in.rows, w, first, last, in, 0, out, out_stride, ahead, next);
    }
  } else if (passes == 1) {
    Ahead<1> ahead{next};
    pass<2>(in.rows, w, first, last, in, 0, out, out_stride, ahead, next);
  } else { // several times over these weights, which stay in the cache
    Ahead<2> ahead{next};
    for (int64_t m = 0, number = 0; number < passes; ++number) {
      const int64_t count = (in.rows - m + passes - number - 1) / (passes - number); // as evenly as it goes
      pass<2>(count, w, first, last, in, m, out, out_stride, ahead, next);
      m += count;
    }
  }
}

void product(const Matrix& w, const Inputs& in, int64_t first, int64_t last, float* out, int64_t out_stride,
             const void* next) {
  const char* ahead = static_cast<const char*>(next == nullptr ? w.row(first) : next);
  switch (w.precision) {
  case Precision::Float32:
    return product(Floating<float>{static_cast<const float*>(w.data), w.k}, w.from_memory, in, first, last, out,
                   out_stride, ahead);
  case Precision::Float16:
    return product(Floating<uint16_t>{static_cast<const uint16_t*>(w.data), w.k}, w.from_memory, in, first, last, out,
                   out_stride, ahead);
  case Precision::Int8:
    return product(Quantised{static_cast<const int8_t*>(w.data), w.scales, w.k}, w.from_memory, in, first, last, out,
                   out_stride, ahead);
  }
}

// N vectors at a time: their sums stay in registers over all rows.
template <int N, typename T>
inline void weighted(const T* rows, const float* weights, int64_t count, int64_t width, float* out) {
  Floats sum[N] = {};
  for (int64_t s = 0; s < count; ++s) {
    const Floats weight = Floats{} + weights[s];
    for (int v = 0; v < N; ++v) {
      sum[v] = multiply_add(weight, load(rows + s * width + kWidth * v), sum[v]);
    }
  }
  for (int v = 0; v < N; ++v) {
    std::memcpy(out + kWidth * v, &sum[v], sizeof(Floats));
  }
}

template <typename T>
void weighted_rows(const T* rows, const float* weights, int64_t count, int64_t width, float* out) {
  constexpr int kMany = 64 / kWidth;
  int64_t d = 0;
  for (; d + kMany * kWidth <= width; d += kMany * kWidth) {
    weighted<kMany>(rows + d, weights, count, width, out + d);
  }
  for (; d + kWidth <= width; d += kWidth) {
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

} // namespace
} // namespace few_rows
