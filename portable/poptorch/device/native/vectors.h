// Vectors of the file that includes this: kWidth and multiply_low() are its own.
//
// Written with the compilers' vector types. Everything has internal linkage, so that code for one kind of processor is
// never taken for another's.

typedef float Floats __attribute__((vector_size(kWidth * 4)));
typedef int32_t Ints __attribute__((vector_size(kWidth * 4)));
typedef uint32_t Unsigneds __attribute__((vector_size(kWidth * 4)));
typedef uint16_t Halves __attribute__((vector_size(kWidth * 2))); // bits of bfloat16 or float16
typedef float FloatsAnywhere __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef uint16_t NarrowAnywhere __attribute__((vector_size(kWidth * 2), aligned(2), may_alias)); // of either type
typedef int16_t ShortsAnywhere __attribute__((vector_size(kWidth * 2), aligned(2), may_alias));

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
