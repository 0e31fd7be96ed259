// GELU by tanh, the bias before it and the bias's gradient included, for the vectors of the file that includes this.
//
// Included after tiles.h, in the same namespace. With s the logistic function and v = 2 sqrt(2 / pi) (x + 0.044715 x^3)
//     gelu(x) = x (1 + tanh(v / 2)) / 2 = x s(v),    gelu'(x) = s(v) + x s(v) (1 - s(v)) dv/dx.
// s follows from the exponential of a number that is never positive, which neither overflows nor cancels.

ALWAYS_INLINE Floats smallest(Floats a, Floats b) {
  return a < b ? a : b;
}
ALWAYS_INLINE Floats choice(Ints mask, Floats yes, Floats no) {
  return mask ? yes : no;
}

struct GeluParts {
  Floats share; // s(v)
  Floats slope; // x s(v) (1 - s(v)) dv/dx
};

template <bool Slope> ALWAYS_INLINE GeluParts gelu_parts(Floats x) {
  constexpr float kFactor = 1.59576912f; // 2 sqrt(2 / pi)
  constexpr float kCubic = 0.044715f;
  // Beyond 16 s is 0 or 1, and the slope 0: the square stays finite. In this order NaN stays NaN.
  const Floats z = smallest(floats(16.0f), largest(floats(-16.0f), x));
  const Floats square = z * z;
  const Floats v = z * (square * (kFactor * kCubic) + kFactor);
  const Ints negative = v < floats(0.0f);
  const Floats e = exp2_of(choice(negative, v, -v) * kLog2E);
  const Floats inverse = floats(1.0f) / (e + 1.0f);
  GeluParts parts;
  parts.share = where(x > floats(-16.0f), choice(negative, e, floats(1.0f)) * inverse);
  if (Slope) {
    parts.slope = z * e * inverse * inverse * (square * (3.0f * kFactor * kCubic) + kFactor);
  }
  return parts;
}

// Rows `first` ... `last` - 1, a part of them: the gradients of x are added up in the part's own row of sums.
template <bool Backward, bool Bias> void gelu_rows(const Gelu& call, int64_t first, int64_t last) {
  const int64_t width = call.width;
  float* sums = Backward && Bias ? call.sums + first / call.part * width : nullptr;
  if (sums) {
    std::fill(sums, sums + width, 0.0f);
  }
  const auto vector = [](const float* from, const float* bias, const float* above, float* out, float* sum) {
    const Floats x = Bias ? load(from) + load(bias) : load(from);
    const GeluParts parts = gelu_parts<Backward>(x);
    if (!Backward) {
      store(out, x * parts.share);
      return;
    }
    const Floats gradient = load(above) * (parts.share + parts.slope);
    store(out, gradient);
    if (Bias) {
      store(sum, load(sum) + gradient);
    }
  };
  const int64_t vectors = width / kWidth * kWidth, rest = width - vectors;
  const auto copy = [rest](const float* from, float* to) { std::copy(from, from + rest, to); };
  for (int64_t row = first; row < last; ++row) {
    const float* x = call.x + row * width;
    const float* above = Backward ? call.grad + row * width : nullptr;
    float* out = call.out + row * width;
    for (int64_t j = 0; j < vectors; j += kWidth) {
      vector(x + j, Bias ? call.bias + j : nullptr, Backward ? above + j : nullptr, out + j, sums ? sums + j : nullptr);
    }
    if (rest) {
      float last_x[kWidth] = {}, last_bias[kWidth] = {}, last_above[kWidth] = {}, last_out[kWidth],
            last_sum[kWidth] = {};
      copy(x + vectors, last_x);
      if (Bias) {
        copy(call.bias + vectors, last_bias);
      }
      if (Backward) {
        copy(above + vectors, last_above);
      }
      if (sums) {
        copy(sums + vectors, last_sum);
      }
      vector(last_x, last_bias, last_above, last_out, last_sum);
      copy(last_out, out + vectors);
      if (sums) {
        copy(last_sum, sums + vectors);
      }
    }
  }
}

void gelu(const Gelu& call, int64_t first, int64_t last) {
  if (call.grad) {
    call.bias ? gelu_rows<true, true>(call, first, last) : gelu_rows<true, false>(call, first, last);
  } else {
    call.bias ? gelu_rows<false, true>(call, first, last) : gelu_rows<false, false>(call, first, last);
  }
}
