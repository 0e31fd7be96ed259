// GELU of each form, the bias before it and the bias's gradient included, for the vectors of the file that includes
// this.
//
// Included after tiles.h, in the same namespace. A form is a struct with of<Slope>(x): gelu(x), or with Slope gelu'(x).

ALWAYS_INLINE Floats smallest(Floats a, Floats b) {
  return a < b ? a : b;
}
ALWAYS_INLINE Floats choice(Ints mask, Floats yes, Floats no) {
  return mask ? yes : no;
}

// With s the logistic function and v = 2 sqrt(2 / pi) (x + 0.044715 x^3)
//     gelu(x) = x (1 + tanh(v / 2)) / 2 = x s(v),    gelu'(x) = s(v) + x s(v) (1 - s(v)) dv/dx.
// s follows from the exponential of a number that is never positive, which neither overflows nor cancels.
struct ByTanh {
  template <bool Slope> static ALWAYS_INLINE Floats of(Floats x) {
    constexpr float kFactor = 1.59576912f; // 2 sqrt(2 / pi)
    constexpr float kCubic = 0.044715f;
    // Beyond 16 s is 0 or 1, and the slope 0: the square stays finite. In this order NaN stays NaN.
    const Floats z = smallest(floats(16.0f), largest(floats(-16.0f), x));
    const Floats square = z * z;
    const Floats v = z * (square * (kFactor * kCubic) + kFactor);
    const Ints negative = v < floats(0.0f);
    const Floats e = exp2_of(choice(negative, v, -v) * kLog2E);
    const Floats inverse = floats(1.0f) / (e + 1.0f);
    const Floats share = where(x > floats(-16.0f), choice(negative, e, floats(1.0f)) * inverse);
    if (!Slope) {
      return x * share;
    }
    return share + z * e * inverse * inverse * (square * (3.0f * kFactor * kCubic) + kFactor);
  }
};

// exp(-a^2 / 2) for 0 <= a <= kFarthest, good to 2e-7 of it; 0 where it is below 2^-126.5. a^2 has more digits than a
// float: its second part counts, too, once whole powers of two are taken from the first.
constexpr float kFarthest = 13.27f; // 2^-127.5 < exp(-a^2 / 2) < 2^-126.5 there

ALWAYS_INLINE Floats exp_of_half_square(Floats a) {
  constexpr float kTwoLn2 = 1.38671875f, kRest = -4.2438888e-4f; // in two parts: few digits times n is exact
  constexpr float kZero = 12582912.0f + 127.0f; // 1.5 * 2^23: the sum is a whole number, with an exponent's bits last
  const Square square = square_of(a);
  const Floats shifted = kZero - square.first * (0.5f * kLog2E);
  const Floats n = shifted - kZero;
  const Floats h = square.first + n * kTwoLn2 + n * kRest + square.second; // a^2 + 2 n ln 2: -0.694 ... 0.8
  Floats p = floats(2.10217913e-5f);                                       // exp(-h / 2), good to 5e-9
  p = p * h - 2.61580921e-4f;
  p = p * h + 2.60461937e-3f;
  p = p * h - 2.08331272e-2f;
  p = p * h + 1.24999940e-1f;
  p = p * h - 0.5f;
  p = p * h + 1.0f;
  return p * reinterpret_cast<Floats>(reinterpret_cast<Ints>(shifted) << 23); // 2^n, 0 for n = -127
}

// With Phi the normal distribution, phi its density, e = exp(-x^2 / 2) and a = |x|, Phi(-a) = e m(a):
//     gelu(x) = x Phi(x),    gelu'(x) = Phi(x) + x phi(x) = Phi(x) + x e / sqrt(2 pi).
// For x < 0 this keeps the digits that 1 + erf loses.
struct ByErf {
  template <bool Slope> static ALWAYS_INLINE Floats of(Floats x) {
    // From kFarthest on, e is 0 and the polynomials stay finite. NaN counts as far, too: the factor x brings it back.
    const Ints magnitude = reinterpret_cast<Ints>(x) & 0x7FFFFFFF;
    const Ints farthest = reinterpret_cast<Ints>(floats(kFarthest));
    const Floats a = reinterpret_cast<Floats>(magnitude < farthest ? magnitude : farthest);
    const Floats e = exp_of_half_square(a);
    // m = over / under, good to 1.3e-8 of it on 0 ... kFarthest: Remez's fit of degrees 4 and 5, all terms positive.
    Floats over = floats(3.98915773e-3f), under = floats(9.99918953e-3f);
    over = over * a + 3.97878140e-2f;
    over = over * a + 1.80742979e-1f;
    over = over * a + 4.34954464e-1f;
    over = over * a + 0.5f;
    under = under * a + 9.97407958e-2f;
    under = under * a + 4.62886304e-1f;
    under = under * a + 1.19218946f;
    under = under * a + 1.66779375f;
    under = under * a + 1.0f;
    const Floats tail = over / under * e; // Phi(-a)
    const Floats share = choice(reinterpret_cast<Ints>(x) < ints(0), tail, 1.0f - tail);
    return Slope ? share + x * (e * 0.398942280f) : x * share;
  }
};

// Rows `first` ... `last` - 1, a part of them: the gradients of x are added up in the part's own row of sums.
template <typename Form, bool Backward, bool Bias, typename Element>
void gelu_rows(const Gelu& call, int64_t first, int64_t last) {
  const int64_t width = call.width, rest = width % kWidth;
  float* sums = Backward && Bias ? call.sums + first / call.part * width : nullptr;
  if (sums) {
    std::fill(sums, sums + width, 0.0f);
  }
  // `count` elements of a row at a time, kWidth or the rest of them.
  const auto vector = [&](int64_t row, int64_t column, auto... count) {
    const int64_t place = row * width + column;
    Floats x = load(static_cast<const Element*>(call.x) + place, count...);
    if (Bias) {
      x += load(call.bias + column, count...);
    }
    Element* out = static_cast<Element*>(call.out) + place;
    if (!Backward) {
      store(out, Form::template of<false>(x), count...);
      return;
    }
    const Floats above = load(static_cast<const Element*>(call.grad) + place, count...);
    const Floats gradient = above * Form::template of<true>(x);
    store(out, gradient, count...);
    if (Bias) {
      store(sums + column, load(sums + column, count...) + gradient, count...);
    }
  };
  for (int64_t row = first; row < last; ++row) {
    for (int64_t column = 0; column < width - rest; column += kWidth) {
      vector(row, column);
    }
    if (rest) {
      vector(row, width - rest, rest);
    }
  }
}

template <typename Form, typename Element> void gelu_by(const Gelu& call, int64_t first, int64_t last) {
  if (call.grad) {
    (call.bias ? gelu_rows<Form, true, true, Element> : gelu_rows<Form, true, false, Element>)(call, first, last);
  } else {
    (call.bias ? gelu_rows<Form, false, true, Element> : gelu_rows<Form, false, false, Element>)(call, first, last);
  }
}

void gelu(const Gelu& call, int64_t first, int64_t last) {
  if (call.by_tanh) {
    (call.narrow ? gelu_by<ByTanh, uint16_t> : gelu_by<ByTanh, float>)(call, first, last);
  } else {
    (call.narrow ? gelu_by<ByErf, uint16_t> : gelu_by<ByErf, float>)(call, first, last);
  }
}
