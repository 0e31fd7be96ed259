// The kernels without intrinsics, for processors without AVX2 and as the yardstick of the others.

#include "few_rows_math.h"

#include <c10/util/Half.h>

#include <cstdlib>

namespace few_rows {
namespace {

float half(uint16_t bits) {
  return c10::Half(bits, c10::Half::from_bits());
}

float dot(const Matrix& w, const Inputs& in, int64_t n, int64_t row) {
  const float* x = in.x + row * in.stride;
  if (w.precision == Precision::Float32) {
    const float* weights = static_cast<const float*>(w.data) + n * w.k;
    return sum_of(w.k, [=](int64_t i) { return weights[i] * x[i]; });
  }
  if (w.precision == Precision::Float16) {
    const uint16_t* weights = static_cast<const uint16_t*>(w.data) + n * w.k;
    return sum_of(w.k, [=](int64_t i) { return half(weights[i]) * x[i]; });
  }
  const int8_t* weights = static_cast<const int8_t*>(w.data) + n * w.k;
  const int8_t* quantised = in.quantised + row * in.quantised_stride;
  const int64_t groups = w.k / kGroup;
  float sum = 0.0f;
  for (int64_t group = 0; group < groups; ++group) {
    int32_t whole = 0;
    for (int64_t i = group * kGroup; i < (group + 1) * kGroup; ++i) {
      whole += weights[i] * quantised[i];
    }
    sum += whole * (half(w.scales[n * groups + group]) * in.scales[row * groups + group]);
  }
  return sum;
}

void product(const Matrix& w, const Inputs& in, int64_t first, int64_t last, float* out, int64_t out_stride,
             const void*) {
  for (int64_t n = first; n < last; ++n) {
    for (int64_t row = 0; row < in.rows; ++row) {
      out[row * out_stride + n] = dot(w, in, n, row);
    }
  }
}

void weighted_sum(const void* rows, Precision precision, const float* weights, int64_t count, int64_t width,
                  float* out) {
  std::fill_n(out, width, 0.0f);
  for (int64_t s = 0; s < count; ++s) {
    for (int64_t d = 0; d < width; ++d) {
      const bool full = precision == Precision::Float32;
      out[d] += weights[s] * (full ? static_cast<const float*>(rows)[s * width + d]
                                   : half(static_cast<const uint16_t*>(rows)[s * width + d]));
    }
  }
}

void to_half(const float* x, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = c10::Half(x[i]).x;
  }
}

} // namespace

const Kernels portable_kernels = {"portable", product,  weighted_sum, softmax, activate,
                                  layer_norm, quantise, to_half,      largest, sum_of_exp};

const Kernels& kernels() {
  static const Kernels* const chosen = [] {
    const char* asked = std::getenv("CUSTOM_OPS_KERNELS");
    const Kernels* fastest = nullptr;
    for (const Kernels* family : {avx512_kernels(), avx2_kernels(), &portable_kernels}) {
      if (family == nullptr) {
        continue;
      }
      if (asked != nullptr && std::strcmp(asked, family->name) == 0) {
        return family;
      }
      fastest = fastest == nullptr ? family : fastest;
    }
    return fastest;
  }();
  return *chosen;
}

} // namespace few_rows
