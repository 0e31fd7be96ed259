// Cross-entropy of rows of logits, which stay in the second cache between the two passes over a row.
//
// Included after vectors.h, in the same namespace. What becomes of a row depends on nothing but its numbers.

constexpr int kChains = 4; // of operations that do not wait for each other

struct Largest {
  float value;
  int64_t place; // of the first of them
};

// Of `count` numbers, NaN left out; of none or of negative infinities alone the first place.
ALWAYS_INLINE Largest largest_of(const float* x, int64_t count) {
  constexpr int64_t kStep = kChains * kWidth;
  Largest found = {-std::numeric_limits<float>::infinity(), 0};
  Floats high[kChains];
  Ints step[kChains]; // in which it was found
  std::fill(high, high + kChains, floats(found.value));
  std::fill(step, step + kChains, ints(0));
  const int64_t steps = count / kStep;
  for (int32_t s = 0; s < steps; ++s) {
    for (int c = 0; c < kChains; ++c) {
      const Floats next = load(x + s * kStep + c * kWidth);
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
    consider(x[i], i);
  }
  return found;
}

// exp(x - top); 0 below 2^-126.
ALWAYS_INLINE Floats share_of(Floats x, Floats top) {
  const Floats power = (x - top) * kLog2E;
  return where(~(power < floats(-126.0f)), exp2_of(power));
}

// Each x becomes exp(x - top), as an Element, in the same memory unless `to` is null: their sum.
template <typename Element> ALWAYS_INLINE double exponentials(const float* x, int64_t count, float top, Element* to) {
  constexpr int64_t kStep = kChains * kWidth;
  const Floats highest = floats(top);
  Floats sums[kChains] = {};
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    Floats shares[kChains]; // a store of one must not be followed by the load of another: `to` may be the same memory
    for (int c = 0; c < kChains; ++c) {
      shares[c] = share_of(load(x + i + c * kWidth), highest);
    }
    for (int c = 0; c < kChains; ++c) {
      sums[c] += shares[c];
      if (to) {
        store(to + i + c * kWidth, shares[c]);
      }
    }
  }
  double sum = 0.0;
  for (int64_t j = 0; j < kStep; ++j) {
    sum += sums[j / kWidth][j % kWidth];
  }
  for (; i < count; i += kWidth) {
    const int64_t rest = std::min<int64_t>(kWidth, count - i);
    const Floats shares = share_of(load(x + i, rest), highest);
    for (int64_t j = 0; j < rest; ++j) {
      sum += shares[j];
    }
    if (to) {
      store(to + i, shares, rest);
    }
  }
  return sum;
}

template <typename Element> ALWAYS_INLINE void cross_entropy_rows(const CrossEntropy& call, int64_t row) {
  float* x = call.logits + row * call.stride;
  const int64_t target = call.target[row];
  const Largest largest = largest_of(x, call.columns);
  const float own = x[target];
  Element* to = call.gradient ? reinterpret_cast<Element*>(x) : nullptr;
  const double sum = exponentials(x, call.columns, largest.value, to);
  call.best[row] = largest.place;
  call.losses[row] = static_cast<float>(std::log(sum) + largest.value - own);
  if (to) {
    call.factors[row] = static_cast<float>(1.0 / sum);
    const Floats less = share_of(floats(own), floats(largest.value)) - static_cast<float>(sum);
    store(to + target, less, 1);
  }
}

void cross_entropy(const CrossEntropy& call, int64_t row) {
  (call.narrow ? cross_entropy_rows<uint16_t> : cross_entropy_rows<float>)(call, row);
}
