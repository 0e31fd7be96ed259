// Adam and AdamW (Kingma and Ba, 2015; Loshchilov and Hutter, 2019): one pass over a weight, its gradient and its two
// moments, each read and written in the type that it is stored in, the arithmetic in float32.
//
// The file that includes this has square_root(), floats_of_halves() and halves_of_floats() for its vectors. What
// becomes of an element depends on nothing but its numbers: those at a tensor's end go through a whole vector of the
// same code.

inline int64_t size_of(Type type) {
  return type == kFloat32 ? 4 : 2;
}

ALWAYS_INLINE Floats load_as(Type type, const void* data, int64_t i) {
  const void* from = static_cast<const char*>(data) + i * size_of(type);
  switch (type) {
  case kFloat32:
    return load(static_cast<const float*>(from));
  case kFloat16:
    return floats_of_halves(*static_cast<const NarrowAnywhere*>(from));
  default:
    return load(static_cast<const uint16_t*>(from));
  }
}

// Rounded to nearest, ties to even.
ALWAYS_INLINE void store_as(Type type, void* data, int64_t i, Floats x) {
  void* to = static_cast<char*>(data) + i * size_of(type);
  switch (type) {
  case kFloat32:
    store(static_cast<float*>(to), x);
    break;
  case kFloat16:
    *static_cast<NarrowAnywhere*>(to) = halves_of_floats(x);
    break;
  default:
    store(static_cast<uint16_t*>(to), x);
  }
}

// A weight in two parts. One halfway between two numbers of bfloat16 that is rounded down comes to lie one unit in its
// last place nearer to 0: that far up the remainder does not reach.
ALWAYS_INLINE Floats load_split(const void* rounded, const int16_t* remainder, int64_t i) {
  const Ints more = __builtin_convertvector(*reinterpret_cast<const ShortsAnywhere*>(remainder + i), Ints);
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(load(static_cast<const uint16_t*>(rounded) + i)) + more);
}

ALWAYS_INLINE void store_split(void* rounded, int16_t* remainder, int64_t i, Floats x) {
  uint16_t* to = static_cast<uint16_t*>(rounded) + i;
  store(to, x);
  const Ints more = reinterpret_cast<Ints>(x) - reinterpret_cast<Ints>(load(to));
  const Ints most = ints(0x7FFF);
  *reinterpret_cast<ShortsAnywhere*>(remainder + i) =
      __builtin_convertvector(more > most ? most : more, ShortsAnywhere);
}

// Adam's numbers, where no store through a pointer can change them.
struct AdamNumbers {
  Floats scale, added_decay, kept, weight1, beta2, weight2, eps, rate;
  bool adds_decay, from_gradient;

  explicit ALWAYS_INLINE AdamNumbers(const Adam& call)
      : scale(floats(1.0f / call.divisor)), added_decay(floats(call.added_decay)), kept(floats(call.kept)),
        beta2(floats(call.beta2)), weight2(floats(call.weight2)), eps(floats(call.eps)), rate(floats(call.rate)),
        adds_decay(call.added_decay != 0.0f), from_gradient(call.weight1 >= 0.5f) {
    weight1 = floats(from_gradient ? call.weight1 - 1.0f : call.weight1);
  }
};

ALWAYS_INLINE void adam_vector(const AdamNumbers& numbers, const AdamTypes& types, const AdamPiece& piece, int64_t i) {
  Floats w = piece.remainder ? load_split(piece.rounded, piece.remainder, i) : load_as(types.weight, piece.weight, i);
  Floats g = load_as(types.gradient, piece.gradient, i) * numbers.scale;
  Floats m = load_as(types.first, piece.first, i), v = load_as(types.second, piece.second, i);
  if (numbers.adds_decay) { // a weight of infinity times 0 would be NaN
    g += numbers.added_decay * w;
  }
  // From the nearer end: what is to become g, with beta1 = 0, is g.
  m = numbers.weight1 * (g - m) + (numbers.from_gradient ? g : m);
  v = v * numbers.beta2 + numbers.weight2 * g * g;
  w = w * numbers.kept - numbers.rate * m / (square_root(v) + numbers.eps);
  store_as(types.first, piece.first, i, m);
  store_as(types.second, piece.second, i, v);
  if (piece.remainder) {
    store_split(piece.rounded, piece.remainder, i, w);
    return;
  }
  store_as(types.weight, piece.weight, i, w);
  if (piece.rounded) {
    store_as(piece.rounded_type, piece.rounded, i, w);
  }
}

// Whole vectors. There is this code once: which sums and products become one instruction is the compiler's choice.
__attribute__((noinline)) void adam_vectors(const Adam& call, const AdamPiece& given, int64_t first, int64_t last) {
  const AdamNumbers numbers(call);
  const AdamTypes types = call.types;
  const AdamPiece piece = given;
  for (int64_t i = first; i < last; i += kWidth) {
    adam_vector(numbers, types, piece, i);
  }
}

void adam(const Adam& call, const AdamPiece& piece, int64_t first, int64_t last) {
  const int64_t rest = (last - first) % kWidth, end = last - rest;
  adam_vectors(call, piece, first, end);
  if (!rest) {
    return;
  }
  const AdamTypes types = call.types;
  float w[kWidth] = {}, g[kWidth] = {}, m[kWidth] = {}, v[kWidth] = {}, rounded[kWidth] = {}; // of either size of type
  int16_t remainder[kWidth] = {};
  const auto take = [&](Type type, const void* from, void* to) {
    std::memcpy(to, static_cast<const char*>(from) + end * size_of(type), rest * size_of(type));
  };
  const auto give = [&](Type type, const void* from, void* to) {
    std::memcpy(static_cast<char*>(to) + end * size_of(type), from, rest * size_of(type));
  };
  if (piece.remainder) {
    take(kBfloat16, piece.rounded, rounded);
    take(kBfloat16, piece.remainder, remainder); // as many bytes
  } else {
    take(types.weight, piece.weight, w);
  }
  take(types.gradient, piece.gradient, g);
  take(types.first, piece.first, m);
  take(types.second, piece.second, v);
  void* const copy = piece.rounded ? rounded : nullptr;
  int16_t* const more = piece.remainder ? remainder : nullptr;
  adam_vectors(call, {w, g, m, v, copy, more, kWidth, piece.rounded_type}, 0, kWidth);
  if (piece.remainder) {
    give(kBfloat16, remainder, piece.remainder);
  } else {
    give(types.weight, w, piece.weight);
  }
  give(types.first, m, piece.first);
  give(types.second, v, piece.second);
  if (piece.rounded) {
    give(piece.rounded_type, rounded, piece.rounded);
  }
}
