// The arithmetic of a decode step: products of a matrix with few rows, softmax, activations, layer norm.
//
// A product with a handful of rows is as fast as its weights can be read. They are stored (out, in), row after row, in
// float32, float16 or int8 (groups of 32 weights with a float16 scale each). The sum of an output runs over its inputs
// in one order, however many rows there are: a row's result does not depend on the rows beside it, to the last bit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace few_rows {

enum class Precision : int64_t { Float32 = 0, Float16 = 1, Int8 = 2 };
enum class Activation { Gelu, GeluTanh, Relu };

constexpr int64_t kGroup = 32;   // int8 weights, or inputs, that share a scale
constexpr int64_t kMaxRows = 16; // rows of `x` at most

// A matrix (n, k) in packed weights.
struct Matrix {
  const void* data = nullptr;
  const uint16_t* scales = nullptr; // Int8: (n, k / 32) float16
  int64_t n = 0, k = 0;
  Precision precision = Precision::Float32;
  bool from_memory = false; // it is one of so many that no cache has it when it is used again

  int64_t row_bytes() const {
    return k * (precision == Precision::Float32 ? 4 : precision == Precision::Float16 ? 2 : 1);
  }
  const void* row(int64_t n) const {
    return static_cast<const char*>(data) + n * row_bytes();
  }
};

// Rows to multiply with: (rows, k) float32 and, for Int8, the same quantised with (rows, k / 32) scales.
struct Inputs {
  const float* x = nullptr;
  const int8_t* quantised = nullptr;
  const float* scales = nullptr;
  int64_t rows = 0;
  int64_t stride = 0, quantised_stride = 0; // from row to row of x and of quantised, in elements
};

// One implementation for each kind of processor.
struct Kernels {
  const char* name;
  // out[row * out_stride + n] = <inputs row, matrix row n> for matrix rows first ... last - 1. `next`, if not null, is
  // where the weights lie that this thread needs after these: it is read ahead, about as many bytes.
  void (*product)(const Matrix&, const Inputs&, int64_t first, int64_t last, float* out, int64_t out_stride,
                  const void* next);
  // out[d] = sum over s of weights[s] * rows[s][d], for rows of `width` elements.
  void (*weighted_sum)(const void* rows, Precision, const float* weights, int64_t count, int64_t width, float* out);
  // x -> exp(scale * x - the largest) / sum, in place.
  void (*softmax)(float* x, int64_t count, float scale);
  void (*activate)(float* x, int64_t count, Activation);
  void (*layer_norm)(const float* x, int64_t count, const float* weight, const float* bias, float epsilon, float* out);
  void (*quantise)(const float* x, int64_t count, int8_t* quantised, float* scales);
  void (*to_half)(const float* x, int64_t count, uint16_t* out);
  float (*largest)(const float* x, int64_t count);
  float (*sum_of_exp)(const float* x, int64_t count, float shift); // of exp(x - shift)
};

// The fastest implementation that this processor runs. The environment variable CUSTOM_OPS_KERNELS=avx512, avx2 or
// portable takes that one, for tests; where it cannot run, the fastest.
const Kernels& kernels();
extern const Kernels portable_kernels; // without intrinsics
const Kernels* avx2_kernels();         // null where they cannot run
const Kernels* avx512_kernels();       // null where they cannot run

} // namespace few_rows
