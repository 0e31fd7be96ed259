// float16 in plain operations on vectors, for processors without instructions for it.

// Exact; NaN stays NaN.
ALWAYS_INLINE Floats floats_of_halves(Halves halves) {
  const Unsigneds bits = __builtin_convertvector(halves, Unsigneds), size = bits & 0x7FFF;
  const Unsigneds shift = Unsigneds{} + (112u << 23); // between the exponents of the two types
  const Unsigneds extreme = reinterpret_cast<Unsigneds>(reinterpret_cast<Ints>(size) > 0x7BFF) & shift;
  const Unsigneds normal = (size << 13) + shift + extreme;
  // A subnormal's bits in the last place of a number from 1/2 on, 2^-24, which is then taken away again.
  const Floats small = reinterpret_cast<Floats>(size | 0x3F000000) - 0.5f;
  const Unsigneds is_small = reinterpret_cast<Unsigneds>(reinterpret_cast<Ints>(size) < 0x0400);
  return reinterpret_cast<Floats>((bits & 0x8000) << 16 | (normal & ~is_small) |
                                  (reinterpret_cast<Unsigneds>(small) & is_small));
}

// To nearest, ties to even; infinity from 65520 on.
ALWAYS_INLINE Halves halves_of_floats(Floats x) {
  const Unsigneds bits = reinterpret_cast<Unsigneds>(x), size = bits & 0x7FFFFFFF;
  const Ints order = reinterpret_cast<Ints>(size); // of the absolute values
  const Unsigneds normal = (size + 0xFFF + (size >> 13 & 1) - (112u << 23)) >> 13;
  const Unsigneds small = reinterpret_cast<Unsigneds>(reinterpret_cast<Floats>(size) + 0.5f) - 0x3F000000;
  const Unsigneds is_small = reinterpret_cast<Unsigneds>(order < 0x38800000);  // 2^-14
  const Unsigneds is_large = reinterpret_cast<Unsigneds>(order >= 0x47800000); // 2^16, infinity, NaN
  const Unsigneds is_nan = reinterpret_cast<Unsigneds>(order > 0x7F800000);
  const Unsigneds large = (is_nan & 0x7E00) | (~is_nan & 0x7C00);
  const Unsigneds found = (is_large & large) | (is_small & small) | (~is_large & ~is_small & normal);
  return __builtin_convertvector(found | (bits >> 16 & 0x8000), Halves);
}
