// Cross-entropy of rows of logits, which stay in the second cache between the two passes over a row.
//
// Included after vectors.h, in the same namespace. What becomes of a row depends on nothing but its numbers.

constexpr int kChains = 4; // of operations that do not wait for each other

struct Largest {
  float value;
  int64_t place; // of the first of them
};

// The sums of two rows' vectors and numbers, or those of one row.
struct Biased {
  const float *x, *bias;

  template <typename... Count> ALWAYS_INLINE Floats vector(int64_t i, Count... count) const {
    return load(x + i, count...) + load(bias + i, count...);
  }
  ALWAYS_INLINE float number(int64_t i) const {
    return x[i] + bias[i];
  }
};
struct Plain {
  const float* x;

  template <typename... Count> ALWAYS_INLINE Floats vector(int64_t i, Count... count) const {
    return load(x + i, count...);
  }
  ALWAYS_INLINE float number(int64_t i) const {
    return x[i];
  }
};

// Of `count` numbers, NaN left out; of none or of negative infinities alone the first place.
template <typename Row> ALWAYS_INLINE Largest largest_of(const Row& row, int64_t count) {
  constexpr int64_t kStep = kChains * kWidth;
  Largest found = {-std::numeric_limits<float>::infinity(), 0};
  Floats high[kChains];
  Ints step[kChains]; // in which it was found
  std::fill(high, high + kChains, floats(found.value));
  std::fill(step, step + kChains, ints(0));
  const int64_t steps = count / kStep;
  for (int32_t s = 0; s < steps; ++s) {
    for (int c = 0; c < kChains; ++c) {
      const Floats next = row.vector(s * kStep + c * kWidth);
      const Ints higher = next > high[c];
      high[c] = higher ? next : high[c];
      step[c] = higher ? ints(s) : step[c];
    }
  }
  const auto consider = [&](float value, int64_t place) {
    if (value > found.value || (value == found.value && place < found.place)) {
      found = {value, place};
    }
  };
  for (int64_t i = 0; i < kStep && steps; ++i) {
    consider(high[i / kWidth][i % kWidth], step[i / kWidth][i % kWidth] * kStep + i);
  }
  for (int64_t i = steps * kStep; i < count; ++i) {
    consider(row.number(i), i);
  }
  return found;
}

// exp(x - top); 0 below 2^-126.
ALWAYS_INLINE Floats share_of(Floats x, Floats top) {
  const Floats power = (x - top) * kLog2E;
  return where(~(power < floats(-126.0f)), exp2_of(power));
}

// Where the elements of a row go: `part` of them follow each other, and so do the next ones `stride` further on.
template <typename Element> struct Parts {
  Element* data; // null: nowhere
  int64_t part, stride;

  ALWAYS_INLINE Element* at(int64_t i) const {
    return data ? data + i / part * stride + i % part : nullptr;
  }
};

// The sum of exp(x - top). Each goes `to` its place as an Element, perhaps in the row's own memory.
template <typename Row, typename Element>
ALWAYS_INLINE double exponentials(const Row& row, int64_t count, float top, const Parts<Element>& to) {
  constexpr int64_t kStep = kChains * kWidth;
  static_assert(kPartStep % kStep == 0); // what is added up does not depend on the parts
  const Floats highest = floats(top);
  Floats sums[kChains] = {};
  int64_t i = 0;
  for (int64_t first = 0; first < count; first += to.part) {
    Element* const place = to.at(first);
    for (const int64_t last = std::min(count, first + to.part); i + kStep <= last; i += kStep) {
      Floats shares[kChains]; // a store of one must not be followed by the load of another, in the same memory perhaps
      for (int c = 0; c < kChains; ++c) {
        shares[c] = share_of(row.vector(i + c * kWidth), highest);
      }
      for (int c = 0; c < kChains; ++c) {
        sums[c] += shares[c];
        if (place) {
          store(place + (i - first) + c * kWidth, shares[c]);
        }
      }
    }
  }
  double sum = 0.0;
  for (int64_t j = 0; j < kStep; ++j) {
    sum += sums[j / kWidth][j % kWidth];
  }
  for (; i < count; i += kWidth) {
    const int64_t rest = std::min<int64_t>(kWidth, count - i);
    const Floats shares = share_of(row.vector(i, rest), highest);
    for (int64_t j = 0; j < rest; ++j) {
      sum += shares[j];
    }
    if (to.data) {
      store(to.at(i), shares, rest);
    }
  }
  return sum;
}

template <typename Element, typename Row>
ALWAYS_INLINE void cross_entropy_row(const CrossEntropy& call, int64_t number, const Row& row) {
  const int64_t target = call.target[number];
  const Largest largest = largest_of(row, call.columns);
  const float own = row.number(target);
  Element* const gradient = static_cast<Element*>(call.gradient);
  const Parts<Element> to = {gradient ? gradient + number * call.gradient_stride : nullptr, call.part,
                             call.part_stride};
  const double sum = exponentials(row, call.columns, largest.value, to);
  call.best[number] = largest.place;
  call.losses[number] = static_cast<float>(std::log(sum) + largest.value - own);
  if (gradient) {
    call.factors[number] = static_cast<float>(1.0 / sum);
    const Floats less = share_of(floats(own), floats(largest.value)) - static_cast<float>(sum);
    store(to.at(target), less, 1);
  }
}

template <typename Element> void cross_entropy_by(const CrossEntropy& call, int64_t number) {
  const float* x = call.logits + number * call.stride;
  if (call.bias) {
    cross_entropy_row<Element>(call, number, Biased{x, call.bias});
  } else {
    cross_entropy_row<Element>(call, number, Plain{x});
  }
}

void cross_entropy(const CrossEntropy& call, int64_t row) {
  (call.narrow ? cross_entropy_by<uint16_t> : cross_entropy_by<float>)(call, row);
}
