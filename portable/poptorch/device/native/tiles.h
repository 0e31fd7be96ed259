// The kernels, for the vectors of the file that includes this: kWidth, kRows and multiply_low() are its own.
//
// Written with the compilers' vector types. Everything has internal linkage, so that code for one kind of processor is
// never taken for another's.
//
// Attention goes through tiles as in FlashAttention (Dao et al., 2022; Dao, 2023): scores live for some rows and kBlock
// columns at a time. Operands of the products inside are packed first, a head at a time: `rows` hold one row after the
// other, `panels` hold kPanel columns of all rows after each other, as the inner loop reads them.

typedef float Floats __attribute__((vector_size(kWidth * 4)));
typedef int32_t Ints __attribute__((vector_size(kWidth * 4)));
typedef uint32_t Unsigneds __attribute__((vector_size(kWidth * 4)));
typedef uint16_t Halves __attribute__((vector_size(kWidth * 2))); // bits of bfloat16 or float16
typedef float FloatsAnywhere __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef uint16_t NarrowAnywhere __attribute__((vector_size(kWidth * 2), aligned(2), may_alias)); // of either type

constexpr int64_t kPanel = 2 * kWidth; // columns
constexpr int64_t kBlock = 128;        // keys of a tile: one group of the mask
constexpr int64_t kStrip = 48;         // queries of a tile
constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147181f;

ALWAYS_INLINE Floats floats(float x) {
  return x - Floats{}; // compilers may drop the subtraction of 0, not the addition
}
ALWAYS_INLINE Ints ints(int32_t x) {
  return Ints{} + x;
}
ALWAYS_INLINE Wide wide(uint64_t x) {
  return Wide{} + x;
}
ALWAYS_INLINE Floats load(const float* from) {
  return *reinterpret_cast<const FloatsAnywhere*>(from);
}
ALWAYS_INLINE void store(float* to, Floats x) {
  *reinterpret_cast<FloatsAnywhere*>(to) = x;
}
// Elements of bfloat16, the upper halves of floats; stored to nearest, halfway cases to even.
ALWAYS_INLINE Floats load(const uint16_t* from) {
  return reinterpret_cast<Floats>(__builtin_convertvector(*reinterpret_cast<const NarrowAnywhere*>(from), Unsigneds)
                                  << 16);
}
ALWAYS_INLINE void store(uint16_t* to, Floats x) {
  const Unsigneds bits = reinterpret_cast<Unsigneds>(x);
  const Unsigneds rounded = bits + 0x7FFF + (bits >> 16 & 1), quiet = bits | 0x400000; // NaN stays NaN
  *reinterpret_cast<NarrowAnywhere*>(to) = __builtin_convertvector((x == x ? rounded : quiet) >> 16, NarrowAnywhere);
}
// The first `count` elements of a vector alone.
template <typename Element> ALWAYS_INLINE Floats load(const Element* from, int64_t count) {
  Element elements[kWidth] = {};
  std::copy(from, from + count, elements);
  return load(elements);
}
template <typename Element> ALWAYS_INLINE void store(Element* to, Floats x, int64_t count) {
  Element elements[kWidth];
  store(elements, x);
  std::copy(elements, elements + count, to);
}
ALWAYS_INLINE float as_float(float x) {
  return x;
}
ALWAYS_INLINE float as_float(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
ALWAYS_INLINE Floats where(Ints mask, Floats x) { // 0 elsewhere
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(x) & mask);
}
ALWAYS_INLINE Floats largest(Floats a, Floats b) {
  return a > b ? a : b;
}
ALWAYS_INLINE Ints lane_numbers() {
  Ints lanes;
  for (int i = 0; i < kWidth; ++i) {
    lanes[i] = i;
  }
  return lanes;
}

#include "philox.h"

// 2^x for x <= 0, 2^-126 below -126. The polynomial is Cephes' for [-1/2, 1/2], good to 2e-7.
ALWAYS_INLINE Floats exp2_of(Floats x) {
  x = largest(floats(-126.0f), x);        // in this order NaN stays NaN
  const Floats shifted = x + 12582912.0f; // 1.5 * 2^23: the sum is a whole number
  const Floats r = x - (shifted - 12582912.0f);
  Floats p = floats(1.535336188319500e-4f);
  p = p * r + 1.339887440266574e-3f;
  p = p * r + 9.618437357674640e-3f;
  p = p * r + 5.550332471162809e-2f;
  p = p * r + 2.402264791363012e-1f;
  p = p * r + 6.931472028550421e-1f;
  p = p * r + 1.0f;
  const Ints power = (reinterpret_cast<Ints>(shifted) - (0x4B400000 - 127)) << 23;
  return p * reinterpret_cast<Floats>(power);
}

inline int64_t whole(int64_t count, int64_t unit) {
  return (count + unit - 1) / unit * unit;
}

// -- products ---------------------------------------------------------------------------------------------------------

// An operand that is read element by element: its element (i, k) lies at data[i * row + k * column].
struct Left {
  const float* data;
  int64_t row, column;
};

// out[i][n] (+)= sum over k of left(i, k) * panel[k][n], for M rows and N vectors.
template <int M, int N, bool Add>
ALWAYS_INLINE void micro(Left left, const float* panel, int64_t depth, float* out, int64_t out_row) {
  Floats sum[M][N];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      sum[i][n] = Add ? load(out + i * out_row + n * kWidth) : floats(0.0f);
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Floats right[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      right[n] = load(panel + k * kPanel + n * kWidth);
    }
    const float* column = left.data + k * left.column;
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      const Floats one = floats(column[i * left.row]);
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        sum[i][n] += one * right[n];
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      store(out + i * out_row + n * kWidth, sum[i][n]);
    }
  }
}

template <int N, bool Add>
void column_of_tiles(Left left, int64_t rows, const float* panel, int64_t depth, float* out, int64_t out_row) {
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows) {
    micro<kRows, N, Add>({left.data + i * left.row, left.row, left.column}, panel, depth, out + i * out_row, out_row);
  }
  for (; i + 2 <= rows; i += 2) {
    micro<2, N, Add>({left.data + i * left.row, left.row, left.column}, panel, depth, out + i * out_row, out_row);
  }
  for (; i < rows; ++i) {
    micro<1, N, Add>({left.data + i * left.row, left.row, left.column}, panel, depth, out + i * out_row, out_row);
  }
}

// out (rows, columns) (+)= left (rows, depth) times panels (depth, columns), which lie `panel_size` elements apart.
template <bool Add>
void product(Left left, int64_t rows, const float* panels, int64_t panel_size, int64_t depth, int64_t columns,
             float* out, int64_t out_row) {
  for (int64_t n = 0; n < columns; n += kPanel, panels += panel_size) {
    if (columns - n > kWidth) {
      column_of_tiles<2, Add>(left, rows, panels, depth, out + n, out_row);
    } else {
      column_of_tiles<1, Add>(left, rows, panels, depth, out + n, out_row);
    }
  }
}

// -- packing ----------------------------------------------------------------------------------------------------------

// (rows, width) times `factor`, one row after the other.
template <typename Element>
void pack_rows(const Element* from, int64_t stride, int64_t rows, int64_t width, float factor, float* to) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t d = 0; d < width; ++d) {
      to[i * width + d] = as_float(from[i * stride + d]) * factor;
    }
  }
}

// (rows, width) as panels of columns: (width / kPanel, rows, kPanel), with zeros after the last column.
template <typename Element>
void pack_panels(const Element* from, int64_t stride, int64_t rows, int64_t width, float factor, float* to) {
  for (int64_t d = 0; d < width; d += kPanel) {
    const int64_t count = std::min(kPanel, width - d);
    for (int64_t i = 0; i < rows; ++i, to += kPanel) {
      for (int64_t n = 0; n < count; ++n) {
        to[n] = as_float(from[i * stride + d + n]) * factor;
      }
      for (int64_t n = count; n < kPanel; ++n) {
        to[n] = 0.0f;
      }
    }
  }
}

// (rows, width) transposed as panels: (rows / kPanel, width, kPanel), with zeros after the last row.
template <typename Element>
void pack_transposed(const Element* from, int64_t stride, int64_t rows, int64_t width, float* to) {
  for (int64_t i = 0; i < rows; i += kPanel, to += width * kPanel) {
    const int64_t count = std::min(kPanel, rows - i);
    for (int64_t n = 0; n < count; ++n) {
      for (int64_t d = 0; d < width; ++d) {
        to[d * kPanel + n] = as_float(from[(i + n) * stride + d]);
      }
    }
    for (int64_t n = count; n < kPanel; ++n) {
      for (int64_t d = 0; d < width; ++d) {
        to[d * kPanel + n] = 0.0f;
      }
    }
  }
}

// Rows (rows, stride) times `factor` to where they belong.
template <typename Element>
void write(const float* from, int64_t stride, int64_t rows, int64_t width, float factor, Element* to, int64_t to_row) {
  for (int64_t i = 0; i < rows; ++i) {
    int64_t d = 0;
    for (; d + kWidth <= width; d += kWidth) {
      store(to + i * to_row + d, load(from + i * stride + d) * factor);
    }
    if (d < width) {
      store(to + i * to_row + d, load(from + i * stride + d, width - d) * factor, width - d);
    }
  }
}

// -- attention --------------------------------------------------------------------------------------------------------

// One head of one sample: where its tensors are, and its part of the random numbers.
struct Head {
  Head(const Attention& call, int64_t sample, int64_t head)
      : call(call), sample(sample), head(head), key(call.keys[sample / call.samples_per_key]),
        counter(static_cast<uint32_t>(sample % call.samples_per_key * call.heads + head)) {
  }

  template <typename Element> Element* at(const View& view) const {
    return static_cast<Element*>(view.data) + sample * view.batch + head * view.head;
  }
  float* log_sums() const {
    return call.log_sums + (sample * call.heads + head) * call.length;
  }
  template <typename Use> ALWAYS_INLINE void masks(int64_t row, int64_t first_key, const Use& use) const {
    masks_of_group(static_cast<uint32_t>(first_key / kGroup * 16), static_cast<uint32_t>(row), counter, kScores, key,
                   call.threshold, use);
  }

  const Attention& call;
  int64_t sample, head;
  uint64_t key;
  uint32_t counter;
};

// How many of the keys from `first_key` on a query sees, of those in a block.
inline int64_t seen(int64_t row, int64_t first_key) {
  return std::clamp<int64_t>(row + 1 - first_key, 0, kBlock);
}

inline Ints before(Ints lanes, int64_t column, int64_t count) {
  return lanes < ints(static_cast<int32_t>(count - column));
}

int64_t scratch_size(const Attention& call, bool backward) {
  const int64_t length = whole(call.length, kBlock), width = whole(call.width, kPanel);
  const int64_t value_width = whole(call.value_width, kPanel);
  if (!backward) { // keys, values, scores, and a strip's queries, sums, context and statistics
    return length * (width + value_width) + kStrip * (kBlock + width + value_width + 2);
  }
  // keys twice, values, queries twice, gradients of the context twice; gradients of queries; then a block's
  return length * (5 * width + 3 * value_width + 1) + kBlock * (width + value_width) + 2 * kStrip * kBlock;
}

// A strip's scores of a block become exponentials under a maximum that only grows; those dropped become 0.
ALWAYS_INLINE void to_dropped_exponentials(const Head& head, int64_t row, int64_t first_key, float* scores,
                                           float& highest, float& sum, float* context, int64_t width) {
  const int64_t count = seen(row, first_key);
  const Ints lanes = lane_numbers();
  Floats top = floats(-std::numeric_limits<float>::infinity());
  int64_t j = 0;
  for (; j + kWidth <= count; j += kWidth) {
    top = largest(top, load(scores + j));
  }
  float high = highest;
  for (int i = 0; i < kWidth; ++i) {
    high = std::max(high, top[i]);
  }
  for (; j < count; ++j) {
    high = std::max(high, scores[j]);
  }
  if (high > highest) { // exp2(-infinity) is 0: the first block has nothing to correct
    const float factor = std::exp2(highest - high);
    sum *= factor;
    for (int64_t d = 0; d < width; d += kWidth) {
      store(context + d, load(context + d) * factor);
    }
    highest = high;
  }
  Floats total = floats(0.0f);
  head.masks(row, first_key, [&](int v, Ints kept) {
    const int64_t column = v * kWidth;
    if (column >= count) {
      store(scores + column, floats(0.0f));
      return;
    }
    Floats e = exp2_of(load(scores + column) - high);
    if (column + kWidth > count) {
      e = where(before(lanes, column, count), e);
    }
    total += e;
    store(scores + column, where(kept, e));
  });
  for (int i = 0; i < kWidth; ++i) {
    sum += total[i];
  }
}

template <typename Element> void forward_of(const Attention& call, int64_t sample, int64_t number, float* scratch) {
  const Head head(call, sample, number);
  const int64_t T = call.length, D = call.width, E = call.value_width, wide_E = whole(E, kPanel);
  float* keys = scratch; // transposed panels
  float* values = keys + whole(T, kBlock) * D;
  float* scores = values + T * wide_E;        // (kStrip, kBlock)
  float* queries = scores + kStrip * kBlock;  // (kStrip, D)
  float* context = queries + kStrip * D;      // (kStrip, wide_E)
  float* highest = context + kStrip * wide_E; // (kStrip,)
  float* sums = highest + kStrip;             // (kStrip,)
  pack_transposed(head.at<Element>(call.key), call.key.row, T, D, keys);
  pack_panels(head.at<Element>(call.value), call.value.row, T, E, 1.0f, values);
  const float kept_scale = 65536.0f / call.threshold;
  for (int64_t row = 0; row < T; row += kStrip) {
    const int64_t rows = std::min(kStrip, T - row);
    pack_rows(head.at<Element>(call.query) + row * call.query.row, call.query.row, rows, D, call.scale * kLog2E,
              queries);
    std::fill(context, context + rows * wide_E, 0.0f);
    std::fill(highest, highest + rows, -std::numeric_limits<float>::infinity());
    std::fill(sums, sums + rows, 0.0f);
    for (int64_t first = 0; first < row + rows; first += kBlock) {
      const int64_t count = std::min(kBlock, row + rows - first); // keys that the last row sees
      product<false>({queries, D, 1}, rows, keys + first * D, D * kPanel, D, count, scores, kBlock);
      for (int64_t i = 0; i < rows; ++i) {
        if (row + i >= first) {
          to_dropped_exponentials(head, row + i, first, scores + i * kBlock, highest[i], sums[i], context + i * wide_E,
                                  wide_E);
        } else {
          std::fill(scores + i * kBlock, scores + i * kBlock + count, 0.0f);
        }
      }
      product<true>({scores, kBlock, 1}, rows, values + first * kPanel, T * kPanel, count, E, context, wide_E);
    }
    for (int64_t i = 0; i < rows; ++i) {
      Element* out = head.at<Element>(call.out) + (row + i) * call.out.row;
      write(context + i * wide_E, wide_E, 1, E, kept_scale / sums[i], out, call.out.row);
      head.log_sums()[row + i] = highest[i] + std::log2(sums[i]);
    }
  }
}

// A row of scores and of gradients of the dropped probabilities becomes dropped probabilities (times the share kept)
// and gradients of scores.
ALWAYS_INLINE void to_gradients(const Head& head, int64_t row, int64_t first_key, float* scores, float* gradients,
                                float log_sum, float delta, float kept_scale) {
  const int64_t count = seen(row, first_key);
  const Ints lanes = lane_numbers();
  head.masks(row, first_key, [&](int v, Ints kept) {
    const int64_t column = v * kWidth;
    if (column >= count) {
      store(scores + column, floats(0.0f));
      store(gradients + column, floats(0.0f));
      return;
    }
    Floats p = exp2_of(load(scores + column) - log_sum);
    if (column + kWidth > count) {
      const Ints valid = before(lanes, column, count);
      p = where(valid, p);
      kept &= valid;
    }
    store(scores + column, where(kept, p));
    store(gradients + column, p * (where(kept, load(gradients + column) * kept_scale) - delta));
  });
}

template <typename Element> void backward_of(const Attention& call, int64_t sample, int64_t number, float* scratch) {
  const Head head(call, sample, number);
  const int64_t T = call.length, D = call.width, E = call.value_width;
  const int64_t wide_T = whole(T, kBlock), wide_D = whole(D, kPanel), wide_E = whole(E, kPanel);
  float* next = scratch;
  const auto take = [&next](int64_t count) {
    float* taken = next;
    next += count;
    return taken;
  };
  float* keys_transposed = take(wide_T * D);
  float* values_transposed = take(wide_T * E);
  float* keys = take(T * wide_D);         // panels
  float* queries = take(T * D);           // times scale log2(e)
  float* query_panels = take(T * wide_D); // the same
  float* above = take(T * E);             // gradients of the context
  float* above_panels = take(T * wide_E);
  float* grad_queries = take(T * wide_D);
  float* deltas = take(T);
  float* grad_keys = take(kBlock * wide_D);
  float* grad_values = take(kBlock * wide_E);
  float* scores = take(kStrip * kBlock);
  float* gradients = take(kStrip * kBlock);
  pack_transposed(head.at<Element>(call.key), call.key.row, T, D, keys_transposed);
  pack_transposed(head.at<Element>(call.value), call.value.row, T, E, values_transposed);
  pack_panels(head.at<Element>(call.key), call.key.row, T, D, 1.0f, keys);
  pack_rows(head.at<Element>(call.query), call.query.row, T, D, call.scale * kLog2E, queries);
  pack_panels(head.at<Element>(call.query), call.query.row, T, D, call.scale * kLog2E, query_panels);
  pack_rows(head.at<Element>(call.grad_out), call.grad_out.row, T, E, 1.0f, above);
  pack_panels(head.at<Element>(call.grad_out), call.grad_out.row, T, E, 1.0f, above_panels);
  for (int64_t i = 0; i < T; ++i) { // sum over keys of probability times its gradient, dropout included
    const Element* out = head.at<Element>(call.out) + i * call.out.row;
    Floats sum = floats(0.0f);
    int64_t d = 0;
    for (; d + kWidth <= E; d += kWidth) {
      sum += load(out + d) * load(above + i * E + d);
    }
    deltas[i] = 0.0f;
    for (int lane = 0; lane < kWidth; ++lane) {
      deltas[i] += sum[lane];
    }
    for (; d < E; ++d) {
      deltas[i] += as_float(out[d]) * above[i * E + d];
    }
  }
  std::fill(grad_queries, grad_queries + T * wide_D, 0.0f);
  const float kept_scale = 65536.0f / call.threshold;
  for (int64_t first = 0; first < T; first += kBlock) {
    const int64_t keys_here = std::min(kBlock, T - first);
    std::fill(grad_keys, grad_keys + keys_here * wide_D, 0.0f);
    std::fill(grad_values, grad_values + keys_here * wide_E, 0.0f);
    for (int64_t row = first; row < T; row += kStrip) {
      const int64_t rows = std::min(kStrip, T - row), count = std::min(kBlock, row + rows - first);
      const Left query_rows = {queries + row * D, D, 1}, above_rows = {above + row * E, E, 1};
      product<false>(query_rows, rows, keys_transposed + first * D, D * kPanel, D, count, scores, kBlock);
      product<false>(above_rows, rows, values_transposed + first * E, E * kPanel, E, count, gradients, kBlock);
      for (int64_t i = 0; i < rows; ++i) {
        to_gradients(head, row + i, first, scores + i * kBlock, gradients + i * kBlock, head.log_sums()[row + i],
                     deltas[row + i], kept_scale);
      }
      const Left by_key = {scores, 1, kBlock}, by_query = {gradients, kBlock, 1},
                 gradients_by_key = {gradients, 1, kBlock};
      product<true>(by_key, count, above_panels + row * kPanel, T * kPanel, rows, E, grad_values, wide_E);
      product<true>(by_query, rows, keys + first * kPanel, T * kPanel, count, D, grad_queries + row * wide_D, wide_D);
      product<true>(gradients_by_key, count, query_panels + row * kPanel, T * kPanel, rows, D, grad_keys, wide_D);
    }
    write(grad_keys, wide_D, keys_here, D, kLn2, head.at<Element>(call.grad_key) + first * call.grad_key.row,
          call.grad_key.row);
    write(grad_values, wide_E, keys_here, E, kept_scale,
          head.at<Element>(call.grad_value) + first * call.grad_value.row, call.grad_value.row);
  }
  write(grad_queries, wide_D, T, D, call.scale, head.at<Element>(call.grad_query), call.grad_query.row);
}

void forward(const Attention& call, int64_t sample, int64_t head, float* scratch) {
  (call.narrow ? forward_of<uint16_t> : forward_of<float>)(call, sample, head, scratch);
}

void backward(const Attention& call, int64_t sample, int64_t head, float* scratch) {
  (call.narrow ? backward_of<uint16_t> : backward_of<float>)(call, sample, head, scratch);
}

// -- residual sum -----------------------------------------------------------------------------------------------------

template <bool Add> void residual_part(const Residual& call, int64_t first, int64_t last) {
  const float kept_scale = 65536.0f / call.threshold;
  for (; first < last; first += kGroup) {
    const uint64_t counter = static_cast<uint64_t>(first / kGroup) * 16;
    const auto each = [&](const float* x, const float* residual, float* out) {
      masks_of_group(static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, kFlat, call.key,
                     call.threshold, [&](int v, Ints kept) {
                       const Floats dropped = where(kept, load(x + v * kWidth) * kept_scale);
                       store(out + v * kWidth, Add ? load(residual + v * kWidth) + dropped : dropped);
                     });
    };
    if (first + kGroup <= last) {
      each(call.x + first, Add ? call.residual + first : nullptr, call.out + first);
    } else {
      float x[kGroup] = {}, residual[kGroup] = {}, out[kGroup];
      std::copy(call.x + first, call.x + last, x);
      if (Add) {
        std::copy(call.residual + first, call.residual + last, residual);
      }
      each(x, residual, out);
      std::copy(out, out + (last - first), call.out + first);
    }
  }
}

void residual(const Residual& call, int64_t first, int64_t last) {
  if (call.residual) {
    residual_part<true>(call, first, last);
  } else {
    residual_part<false>(call, first, last);
  }
}

void philox_block(const uint32_t counter[4], const uint32_t key[2], uint32_t result[4]) {
  const Block block =
      philox(counter[0], counter[1], counter[2], counter[3], key[0] | static_cast<uint64_t>(key[1]) << 32);
  for (int w = 0; w < 4; ++w) {
    result[w] = static_cast<uint32_t>(block.word[w].even[0]);
  }
}
