// Causal attention with dropout. Included after tiles.h, in the same namespace.
//
// It goes through tiles as in FlashAttention (Dao et al., 2022; Dao, 2023): scores live for some rows and kBlock
// columns at a time. The operands of the products inside are of the type that Operands (tiles.h) have: those from
// tensors, which are packed a head at a time, and the probabilities and gradients of scores. All else is float32: sums
// of products, scores, and the softmax's statistics.

constexpr int64_t kBlock = 128; // keys of a tile: one group of the mask
constexpr int64_t kStrip = 48;  // queries of a tile

// One head of one sample: where its tensors are, its bias, and its part of the random numbers.
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
  float* grad_bias() const {
    return call.grad_bias ? call.grad_bias + (sample * call.heads + head) * call.length : nullptr;
  }
  bool is_biased() const {
    return call.slopes || call.bias;
  }
  float slope() const {
    return call.slopes ? call.slopes[head] : 0.0f;
  }
  // The keys' biases (T,), times `unit`.
  void write_bias(float unit, float* to) const {
    const float* bias = call.bias ? call.bias + sample / call.samples_per_bias * call.length : nullptr;
    for (int64_t j = 0; j < call.length; ++j) {
      to[j] = bias ? bias[j] * unit : 0.0f;
    }
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

// Scores are powers of 2: their factor scale log2(e) is one of the queries where these are scaled before they are
// packed, else one of the scores. What is left is 1.
template <typename Operands> float factor_of_scores(const Attention& call) {
  return Operands::kScaled ? 1.0f : call.scale * kLog2E;
}
template <typename Operands> ALWAYS_INLINE Floats scaled(Floats scores, float factor) {
  return Operands::kScaled ? scores : scores * factor;
}

// A strip's scores (rows, kBlock) of `count` keys from `first_key` on with what is added to them: the keys' `bias`, and
// `slope` times how far each key lies behind the query, which is below 0 where something is seen.
inline void add_bias(float* scores, int64_t rows, int64_t row, int64_t first_key, int64_t count, const float* bias,
                     float slope) {
  const Ints lanes = lane_numbers();
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < count; j += kWidth) {
      const Ints behind = lanes + ints(static_cast<int32_t>(first_key + j - row - i));
      float* at = scores + i * kBlock + j;
      store(at, load(at) + (load(bias + first_key + j) + __builtin_convertvector(behind, Floats) * slope));
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

// Hands out parts of a thread's scratch memory, each at the beginning of a cache line if that is. Without memory it
// counts how much there must be.
class Room {
public:
  explicit Room(float* memory) : memory(memory) {
  }
  template <typename Number> Number* take(int64_t count) {
    float* part = memory ? memory + taken : nullptr;
    taken += whole(count * sizeof(Number), 64) / sizeof(float);
    return reinterpret_cast<Number*>(part);
  }
  // In place of `values` where the type is the same.
  template <typename Number> Number* take_beside(float* values, int64_t count) {
    if constexpr (std::is_same_v<Number, float>) {
      return values;
    } else {
      return take<Number>(count);
    }
  }

  float* memory;
  int64_t taken = 0;
};

// What a head's forward pass works with.
template <typename Operands> struct Forward {
  using Number = typename Operands::Number;

  Forward(const Attention& call, float* memory) : room(memory) {
    const int64_t T = call.length, D = call.width, wide_E = whole(call.value_width, kPanel);
    keys = room.take<Number>(whole(T, kPanel) * deep<Operands>(D));
    values = room.take<Number>(deep<Operands>(T) * wide_E);
    queries = room.take<Number>(kStrip * deep<Operands>(D));
    scores = room.take<float>(kStrip * kBlock);
    probabilities = room.take_beside<Number>(scores, kStrip * kBlock);
    context = room.take<float>(kStrip * wide_E);
    highest = room.take<float>(kStrip);
    sums = room.take<float>(kStrip);
    bias = room.take<float>(whole(T, kBlock));
  }

  Room room;
  Number *keys, *values; // transposed panels, panels
  Number* queries;       // (kStrip, deep D)
  float* scores;         // (kStrip, kBlock)
  Number* probabilities; // (kStrip, kBlock)
  float* context;        // (kStrip, wide_E)
  float *highest, *sums; // (kStrip,)
  float* bias;           // (T,), of the keys
};

// And its backward pass.
template <typename Operands> struct Backward {
  using Number = typename Operands::Number;

  Backward(const Attention& call, float* memory) : room(memory) {
    const int64_t T = call.length, D = call.width, E = call.value_width;
    const int64_t deep_T = deep<Operands>(T), deep_D = deep<Operands>(D), deep_E = deep<Operands>(E);
    const int64_t wide_T = whole(T, kPanel), wide_D = whole(D, kPanel), wide_E = whole(E, kPanel);
    keys_transposed = room.take<Number>(wide_T * deep_D);
    values_transposed = room.take<Number>(wide_T * deep_E);
    keys = room.take<Number>(deep_T * wide_D);
    queries = room.take<Number>(T * deep_D);
    query_panels = room.take<Number>(deep_T * wide_D);
    above = room.take<Number>(T * deep_E);
    above_panels = room.take<Number>(deep_T * wide_E);
    grad_queries = room.take<float>(T * wide_D);
    deltas = room.take<float>(T);
    grad_keys = room.take<float>(kBlock * wide_D);
    grad_values = room.take<float>(kBlock * wide_E);
    scores = room.take<float>(kStrip * kBlock);
    gradients = room.take<float>(kStrip * kBlock);
    probabilities = room.take_beside<Number>(scores, kStrip * kBlock);
    score_gradients = room.take_beside<Number>(gradients, kStrip * kBlock);
    columns = room.take_beside<Number>(scores, kStrip * kBlock);
    bias = room.take<float>(whole(T, kBlock));
    grad_bias = room.take<float>(kBlock);
  }

  Room room;
  Number *keys_transposed, *values_transposed, *keys; // panels
  Number *queries, *query_panels;                     // rows, panels
  Number *above, *above_panels;                       // gradients of the context: rows, panels
  float* grad_queries;                                // (T, wide_D)
  float* deltas;                                      // (T,)
  float *grad_keys, *grad_values;                     // (kBlock, wide_D), (kBlock, wide_E)
  float *scores, *gradients;                          // (kStrip, kBlock), of the dropped probabilities
  Number *probabilities, *score_gradients;            // (kStrip, kBlock)
  Number* columns;                                    // for Operands::by_columns()
  float *bias, *grad_bias;                            // of the keys: (T,), (kBlock,)
};

template <typename Operands> int64_t scratch_size(const Attention& call, bool backward) {
  return backward ? Backward<Operands>(call, nullptr).room.taken : Forward<Operands>(call, nullptr).room.taken;
}

// A strip's scores of a block become exponentials under a maximum that only grows; those dropped become 0.
template <typename Operands>
ALWAYS_INLINE void to_dropped_exponentials(const Head& head, int64_t row, int64_t first_key, const float* scores,
                                           float factor, typename Operands::Number* probabilities, float& highest,
                                           float& sum, float* context, int64_t width) {
  const int64_t count = seen(row, first_key);
  const Ints lanes = lane_numbers();
  const Floats lowest = floats(-std::numeric_limits<float>::infinity());
  Floats top = lowest;
  for (int64_t j = 0; j < count; j += kWidth) {
    const Floats here = scaled<Operands>(load(scores + j), factor);
    top = largest(top, before(lanes, j, count) ? here : lowest);
  }
  float high = highest;
  for (int i = 0; i < kWidth; ++i) {
    high = std::max(high, top[i]);
  }
  if (high > highest) { // exp2(-infinity) is 0: the first block has nothing to correct
    const float correction = std::exp2(highest - high);
    sum *= correction;
    for (int64_t d = 0; d < width; d += kWidth) {
      store(context + d, load(context + d) * correction);
    }
    highest = high;
  }
  Floats total = floats(0.0f);
  head.masks(row, first_key, [&](int v, Ints kept) {
    const int64_t column = v * kWidth;
    if (column >= count) {
      Operands::store(probabilities + column, floats(0.0f));
      return;
    }
    Floats e = exp2_of(scaled<Operands>(load(scores + column), factor) - high);
    if (column + kWidth > count) {
      e = where(before(lanes, column, count), e);
    }
    total += e;
    Operands::store(probabilities + column, where(kept, e));
  });
  for (int i = 0; i < kWidth; ++i) {
    sum += total[i];
  }
}

template <typename Element, typename Operands>
void forward_of(const Attention& call, int64_t sample, int64_t number, float* scratch) {
  const Head head(call, sample, number);
  const int64_t T = call.length, D = call.width, E = call.value_width, wide_E = whole(E, kPanel);
  const int64_t deep_T = deep<Operands>(T), deep_D = deep<Operands>(D);
  const Forward<Operands> its(call, scratch);
  Operands::pack_transposed(head.at<Element>(call.key), call.key.row, T, D, its.keys);
  Operands::pack_panels(head.at<Element>(call.value), call.value.row, T, E, its.values);
  const float factor = factor_of_scores<Operands>(call), kept_scale = 65536.0f / call.threshold;
  const float unit = kLog2E / factor, slope = head.slope() * unit; // of the scores as they come from the product
  if (head.is_biased()) {
    head.write_bias(unit, its.bias);
  }
  for (int64_t row = 0; row < T; row += kStrip) {
    const int64_t rows = std::min(kStrip, T - row);
    const Element* queries = head.at<Element>(call.query) + row * call.query.row;
    if constexpr (Operands::kScaled) {
      Operands::pack_rows(queries, call.query.row, rows, D, its.queries, call.scale * kLog2E);
    } else {
      Operands::pack_rows(queries, call.query.row, rows, D, its.queries);
    }
    std::fill(its.context, its.context + rows * wide_E, 0.0f);
    std::fill(its.highest, its.highest + rows, -std::numeric_limits<float>::infinity());
    std::fill(its.sums, its.sums + rows, 0.0f);
    for (int64_t first = 0; first < row + rows; first += kBlock) {
      const int64_t count = std::min(kBlock, row + rows - first); // keys that the last row sees
      product<false>(by_rows<Operands>(its.queries, deep_D), rows, its.keys + first * deep_D, deep_D * kPanel, D, count,
                     its.scores, kBlock);
      if (head.is_biased()) {
        add_bias(its.scores, rows, row, first, count, its.bias, slope);
      }
      for (int64_t i = 0; i < rows; ++i) {
        auto* probabilities = its.probabilities + i * kBlock;
        if (row + i >= first) {
          to_dropped_exponentials<Operands>(head, row + i, first, its.scores + i * kBlock, factor, probabilities,
                                            its.highest[i], its.sums[i], its.context + i * wide_E, wide_E);
        } else {
          std::fill(probabilities, probabilities + deep<Operands>(count), 0);
        }
      }
      product<true>(by_rows<Operands>(its.probabilities, kBlock), rows, its.values + first * kPanel, deep_T * kPanel,
                    count, E, its.context, wide_E);
    }
    for (int64_t i = 0; i < rows; ++i) {
      Element* out = head.at<Element>(call.out) + (row + i) * call.out.row;
      write(its.context + i * wide_E, wide_E, 1, E, kept_scale / its.sums[i], out, call.out.row);
      head.log_sums()[row + i] = its.highest[i] + std::log2(its.sums[i]);
    }
  }
}

// A row of scores and of gradients of the dropped probabilities becomes dropped probabilities (times the share kept)
// and gradients of scores, which are added to `grad_bias` too, unless that is null.
template <typename Operands>
ALWAYS_INLINE void to_gradients(const Head& head, int64_t row, int64_t first_key, const float* scores, float factor,
                                const float* gradients, typename Operands::Number* probabilities,
                                typename Operands::Number* score_gradients, float log_sum, float delta,
                                float kept_scale, float* grad_bias) {
  const int64_t count = seen(row, first_key);
  const Ints lanes = lane_numbers();
  head.masks(row, first_key, [&](int v, Ints kept) {
    const int64_t column = v * kWidth;
    if (column >= count) {
      Operands::store(probabilities + column, floats(0.0f));
      Operands::store(score_gradients + column, floats(0.0f));
      return;
    }
    Floats p = exp2_of(scaled<Operands>(load(scores + column), factor) - log_sum);
    if (column + kWidth > count) {
      const Ints valid = before(lanes, column, count);
      p = where(valid, p);
      kept &= valid;
    }
    const Floats gradient = p * (where(kept, load(gradients + column) * kept_scale) - delta);
    Operands::store(probabilities + column, where(kept, p));
    Operands::store(score_gradients + column, gradient);
    if (grad_bias) {
      store(grad_bias + column, load(grad_bias + column) + gradient);
    }
  });
}

template <typename Element, typename Operands>
void backward_of(const Attention& call, int64_t sample, int64_t number, float* scratch) {
  const Head head(call, sample, number);
  const int64_t T = call.length, D = call.width, E = call.value_width;
  const int64_t wide_D = whole(D, kPanel), wide_E = whole(E, kPanel);
  const int64_t deep_T = deep<Operands>(T), deep_D = deep<Operands>(D), deep_E = deep<Operands>(E);
  const Backward<Operands> its(call, scratch);
  const float factor = factor_of_scores<Operands>(call), kept_scale = 65536.0f / call.threshold;
  Operands::pack_transposed(head.at<Element>(call.key), call.key.row, T, D, its.keys_transposed);
  Operands::pack_transposed(head.at<Element>(call.value), call.value.row, T, E, its.values_transposed);
  Operands::pack_panels(head.at<Element>(call.key), call.key.row, T, D, its.keys);
  if constexpr (Operands::kScaled) {
    const float all = call.scale * kLog2E;
    Operands::pack_rows(head.at<Element>(call.query), call.query.row, T, D, its.queries, all);
    Operands::pack_panels(head.at<Element>(call.query), call.query.row, T, D, its.query_panels, all);
  } else {
    Operands::pack_rows(head.at<Element>(call.query), call.query.row, T, D, its.queries);
    Operands::pack_panels(head.at<Element>(call.query), call.query.row, T, D, its.query_panels);
  }
  Operands::pack_rows(head.at<Element>(call.grad_out), call.grad_out.row, T, E, its.above);
  Operands::pack_panels(head.at<Element>(call.grad_out), call.grad_out.row, T, E, its.above_panels);
  for (int64_t i = 0; i < T; ++i) { // sum over keys of probability times its gradient, dropout included
    const Element* out = head.at<Element>(call.out) + i * call.out.row;
    const auto* above = its.above + i * deep_E;
    Floats sum = floats(0.0f);
    int64_t d = 0;
    for (; d + kWidth <= E; d += kWidth) {
      sum += load(out + d) * load(above + d);
    }
    its.deltas[i] = 0.0f;
    for (int lane = 0; lane < kWidth; ++lane) {
      its.deltas[i] += sum[lane];
    }
    for (; d < E; ++d) {
      its.deltas[i] += as_float(out[d]) * as_float(above[d]);
    }
  }
  const float unit = kLog2E / factor, slope = head.slope() * unit;
  if (head.is_biased()) {
    head.write_bias(unit, its.bias);
  }
  float* grad_bias = head.grad_bias() ? its.grad_bias : nullptr;
  std::fill(its.grad_queries, its.grad_queries + T * wide_D, 0.0f);
  for (int64_t first = 0; first < T; first += kBlock) {
    const int64_t keys_here = std::min(kBlock, T - first);
    std::fill(its.grad_bias, its.grad_bias + kBlock, 0.0f);
    std::fill(its.grad_keys, its.grad_keys + keys_here * wide_D, 0.0f);
    std::fill(its.grad_values, its.grad_values + keys_here * wide_E, 0.0f);
    for (int64_t row = first; row < T; row += kStrip) {
      const int64_t rows = std::min(kStrip, T - row), count = std::min(kBlock, row + rows - first);
      product<false>(by_rows<Operands>(its.queries + row * deep_D, deep_D), rows, its.keys_transposed + first * deep_D,
                     deep_D * kPanel, D, count, its.scores, kBlock);
      if (head.is_biased()) {
        add_bias(its.scores, rows, row, first, count, its.bias, slope);
      }
      product<false>(by_rows<Operands>(its.above + row * deep_E, deep_E), rows, its.values_transposed + first * deep_E,
                     deep_E * kPanel, E, count, its.gradients, kBlock);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t at = i * kBlock;
        to_gradients<Operands>(head, row + i, first, its.scores + at, factor, its.gradients + at,
                               its.probabilities + at, its.score_gradients + at, head.log_sums()[row + i],
                               its.deltas[row + i], kept_scale, grad_bias);
      }
      const int64_t panel_of_T = deep_T * kPanel;
      product<true>(Operands::by_columns(its.probabilities, kBlock, rows, count, its.columns), count,
                    its.above_panels + row * kPanel, panel_of_T, rows, E, its.grad_values, wide_E);
      product<true>(by_rows<Operands>(its.score_gradients, kBlock), rows, its.keys + first * kPanel, panel_of_T, count,
                    D, its.grad_queries + row * wide_D, wide_D);
      product<true>(Operands::by_columns(its.score_gradients, kBlock, rows, count, its.columns), count,
                    its.query_panels + row * kPanel, panel_of_T, rows, D, its.grad_keys, wide_D);
    }
    write(its.grad_keys, wide_D, keys_here, D, kLn2 * factor,
          head.at<Element>(call.grad_key) + first * call.grad_key.row, call.grad_key.row);
    write(its.grad_values, wide_E, keys_here, E, kept_scale,
          head.at<Element>(call.grad_value) + first * call.grad_value.row, call.grad_value.row);
    if (grad_bias) {
      std::copy(grad_bias, grad_bias + keys_here, head.grad_bias() + first);
    }
  }
  write(its.grad_queries, wide_D, T, D, call.scale, head.at<Element>(call.grad_query), call.grad_query.row);
}

// For tensors of either type.
template <typename Operands> void forward(const Attention& call, int64_t sample, int64_t head, float* scratch) {
  (call.narrow ? forward_of<uint16_t, Operands> : forward_of<float, Operands>)(call, sample, head, scratch);
}

template <typename Operands> void backward(const Attention& call, int64_t sample, int64_t head, float* scratch) {
  (call.narrow ? backward_of<uint16_t, Operands> : backward_of<float, Operands>)(call, sample, head, scratch);
}
