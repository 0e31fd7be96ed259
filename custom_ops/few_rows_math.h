// Loops over float32 that a compiler vectorises for what the including file is compiled for.
//
// Everything has internal linkage: each file that includes this gets code of its own.
#pragma once

#include "few_rows_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace few_rows {
namespace {

// exp(x) to about 1e-7 of its value: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] with Cephes' coefficients.
inline float fast_exp(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f; // 1.5 * 2^23: the sum is a whole number
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits - 0x4B400000 + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

// erf(x) to 1.5e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
inline float fast_erf(float x) {
  const float a = std::fabs(x);
  const float t = 1.0f / (1.0f + 0.3275911f * a);
  const float p = ((((1.061405429f * t - 1.453152027f) * t) + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f;
  return std::copysign(1.0f - p * t * fast_exp(-a * a), x);
}

void activate(float* x, int64_t count, Activation activation) {
  switch (activation) {
  case Activation::Gelu: // x Phi(x)
    for (int64_t i = 0; i < count; ++i) {
      x[i] = 0.5f * x[i] * (1.0f + fast_erf(x[i] * 0.70710678f));
    }
    break;
  case Activation::GeluTanh: // 0.5 x (1 + tanh(u)) = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
    for (int64_t i = 0; i < count; ++i) {
      const float u = 0.79788456f * (x[i] + 0.044715f * x[i] * x[i] * x[i]);
      x[i] = x[i] / (1.0f + fast_exp(-2.0f * u));
    }
    break;
  case Activation::Relu:
    for (int64_t i = 0; i < count; ++i) {
      x[i] = std::max(x[i], 0.0f);
    }
    break;
  }
}

constexpr int64_t kLanes = 16; // independent partial results, so that sums vectorise; at least one vector

template <typename Term> float sum_of(int64_t count, Term term) {
  float partial[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      partial[lane] += term(i + lane);
    }
  }
  float sum = 0.0f;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    sum += partial[lane];
  }
  for (; i < count; ++i) {
    sum += term(i);
  }
  return sum;
}

void softmax(float* x, int64_t count, float scale) {
  float largest = x[0];
  for (int64_t i = 1; i < count; ++i) {
    largest = std::max(largest, x[i]);
  }
  for (int64_t i = 0; i < count; ++i) {
    x[i] = fast_exp((x[i] - largest) * scale);
  }
  const float inverse = 1.0f / sum_of(count, [x](int64_t i) { return x[i]; });
  for (int64_t i = 0; i < count; ++i) {
    x[i] *= inverse;
  }
}

void layer_norm(const float* x, int64_t count, const float* weight, const float* bias, float epsilon, float* out) {
  const float mean = sum_of(count, [x](int64_t i) { return x[i]; }) / count;
  const float variance = sum_of(count, [x, mean](int64_t i) { return (x[i] - mean) * (x[i] - mean); }) / count;
  const float factor = 1.0f / std::sqrt(variance + epsilon);
  for (int64_t i = 0; i < count; ++i) {
    out[i] = (x[i] - mean) * factor * weight[i] + bias[i];
  }
}

float largest(const float* x, int64_t count) {
  float found[kLanes];
  std::fill_n(found, kLanes, x[0]);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      found[lane] = x[i + lane] > found[lane] ? x[i + lane] : found[lane];
    }
  }
  for (; i < count; ++i) {
    found[0] = x[i] > found[0] ? x[i] : found[0];
  }
  return *std::max_element(found, found + kLanes);
}

float sum_of_exp(const float* x, int64_t count, float shift) {
  return sum_of(count, [x, shift](int64_t i) { return fast_exp(x[i] - shift); });
}

// Groups of kGroup: x is about quantised * scale, scale = largest / 127; NaN for a group that holds NaN or infinity,
// which bytes cannot say.
void quantise(const float* x, int64_t count, int8_t* quantised, float* scales) {
  for (int64_t group = 0; group < count / kGroup; ++group, x += kGroup, quantised += kGroup) {
    float largest = 0.0f;
    int finite = 1;
    for (int64_t i = 0; i < kGroup; ++i) {
      largest = std::max(largest, std::fabs(x[i])); // passes over NaN
      finite &= std::fabs(x[i]) <= std::numeric_limits<float>::max();
    }
    if (!finite) {
      scales[group] = std::numeric_limits<float>::quiet_NaN();
      std::fill_n(quantised, kGroup, int8_t{0});
      continue;
    }
    scales[group] = largest / 127.0f;
    const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    for (int64_t i = 0; i < kGroup; ++i) {
      const float shifted = x[i] * inverse + 12582912.0f; // rounded to the nearest whole number
      quantised[i] = static_cast<int8_t>(shifted - 12582912.0f);
    }
  }
}

} // namespace
} // namespace few_rows
