// Where the matrices and vectors of GPT-2's blocks lie in the two buffers that decode_blocks.py packs.
#pragma once

#include "few_rows_kernels.h"

#include <vector>

namespace few_rows {

// Matrices follow each other in a byte buffer, each part of them on a multiple of 64 bytes.
class MatrixReader {
public:
  // `data` has `size` bytes.
  MatrixReader(const uint8_t* data, int64_t size, Precision precision)
      : data_(data), precision_(precision), from_memory_(size > int64_t{64} << 20) {
  }

  Matrix next(int64_t n, int64_t k) {
    Matrix matrix{data_ + offset_, nullptr, n, k, precision_, from_memory_};
    const int64_t size = precision_ == Precision::Float32 ? 4 : precision_ == Precision::Float16 ? 2 : 1;
    advance(n * k * size);
    if (precision_ == Precision::Int8) {
      matrix.scales = reinterpret_cast<const uint16_t*>(data_ + offset_);
      advance(n * (k / kGroup) * 2);
    }
    return matrix;
  }

  int64_t offset() const {
    return offset_;
  }

private:
  void advance(int64_t bytes) {
    offset_ += (bytes + 63) / 64 * 64;
  }

  const uint8_t* data_;
  Precision precision_;
  bool from_memory_;
  int64_t offset_ = 0;
};

// What the blocks of a model have in common beside their weights.
struct BlockForm {
  int64_t n_head, inner;
  Activation activation;
  float epsilon;
  bool parallel;             // attention and MLP read the first layer norm and are added in one sum
  std::vector<float> slopes; // of ALiBi, one a head; none: scores have no bias
};

// One block of GPT-2, C = n_embd, I = the MLP's inner size.
struct Layer {
  Matrix attention_in, attention_out, mlp_in, mlp_out;                        // (3C, C), (C, C), (I, C), (C, I)
  const float *norm_1, *norm_1_bias, *attention_in_bias, *attention_out_bias; // C, C, 3C, C
  const float *norm_2, *norm_2_bias, *mlp_in_bias, *mlp_out_bias;             // C, C, I, C
};

inline int64_t layer_vectors(int64_t n_embd, int64_t inner) {
  return 9 * n_embd + inner;
}

inline std::vector<Layer> read_layers(MatrixReader& matrices, const float* vectors, int64_t layers, int64_t n_embd,
                                      int64_t inner) {
  std::vector<Layer> result(layers);
  for (Layer& layer : result) {
    layer.attention_in = matrices.next(3 * n_embd, n_embd);
    layer.attention_out = matrices.next(n_embd, n_embd);
    layer.mlp_in = matrices.next(inner, n_embd);
    layer.mlp_out = matrices.next(n_embd, inner);
    const auto take = [&vectors](int64_t size) {
      const float* start = vectors;
      vectors += size;
      return start;
    };
    layer.norm_1 = take(n_embd);
    layer.norm_1_bias = take(n_embd);
    layer.attention_in_bias = take(3 * n_embd);
    layer.attention_out_bias = take(n_embd);
    layer.norm_2 = take(n_embd);
    layer.norm_2_bias = take(n_embd);
    layer.mlp_in_bias = take(inner);
    layer.mlp_out_bias = take(n_embd);
  }
  return result;
}

} // namespace few_rows
