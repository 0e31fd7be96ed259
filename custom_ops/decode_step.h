// One step of a few rows through blocks of GPT-2, on all threads at once: five phases a block.
#pragma once

#include "packed_weights.h"
#include "worker_pool.h"

#include <cmath>
#include <memory>
#include <new>

namespace few_rows {

// A token at hand: row `batch` of the batch, slot `position` of its cache.
struct Token {
  int64_t batch, position;
};

struct Cache {
  void *keys, *values; // (layers, batch, n_head, slots, head size)
  Precision precision;
  int64_t batch, slots;

  size_t element() const {
    return precision == Precision::Float32 ? 4 : 2;
  }
};

// Rows of numbers, each from a cache line on. Rows that are read together lie an odd number of KiB apart: a multiple of
// 4 KiB would put them, and the weights, into the same few places of the L1 cache, where they push each other out.
template <typename T> class Rows {
public:
  Rows(int64_t count, int64_t width)
      : stride(((width * sizeof(T) + 1023) / 1024 | 1) * 1024 / sizeof(T)),
        data_(static_cast<T*>(::operator new(count * stride * sizeof(T), kLine))) {
  }

  T* operator[](int64_t row) const {
    return data_.get() + row * stride;
  }

  const int64_t stride; // from row to row, in elements

private:
  static constexpr std::align_val_t kLine{64};

  struct Free {
    void operator()(T* data) const {
      ::operator delete(data, kLine);
    }
  };

  std::unique_ptr<T, Free> data_;
};

// What one thread works with.
struct Workspace {
  Rows<float> rows;
  Rows<int8_t> quantised;
  std::vector<float> scales, scores;

  Workspace(int64_t tokens, int64_t width, int64_t slots)
      : rows(tokens, width), quantised(tokens, width), scales(tokens * width / kGroup + 1), scores(slots) {
  }

  // `x` (tokens, k) as the inputs of a product with a matrix of that precision.
  Inputs inputs(const Rows<float>& x, int64_t tokens, int64_t k, Precision precision) {
    if (precision == Precision::Int8) {
      for (int64_t token = 0; token < tokens; ++token) {
        kernels().quantise(x[token], k, quantised[token], scales.data() + token * (k / kGroup));
      }
    }
    return {x[0], quantised[0], scales.data(), tokens, x.stride, quantised.stride};
  }
};

// Matrix rows that a thread takes at a time, a multiple of the kernels' blocks: about 64 KiB of weights or, where
// several input rows go over them while others are read ahead, 144 KiB.
inline int64_t part_rows(const Matrix& matrix, int64_t tokens, int threads) {
  const int64_t bytes = tokens == 1 ? int64_t{64} << 10 : int64_t{144} << 10;
  const int64_t rows = std::min(bytes / matrix.row_bytes(), matrix.n / (4 * threads));
  return std::max<int64_t>(12, rows / 12 * 12);
}

class DecodeStep final : public Job {
public:
  // hidden: (tokens, n_embd), changed in place. Tokens of one batch row follow each other.
  DecodeStep(std::vector<Layer> layers, std::vector<Token> tokens, float* hidden, Cache cache, int64_t n_embd,
             BlockForm form, int threads)
      : Job(threads), layers_(std::move(layers)), tokens_(std::move(tokens)), hidden_(hidden), cache_(cache),
        form_(std::move(form)), n_head_(form_.n_head), n_embd_(n_embd), inner_(form_.inner), threads_(threads),
        phases_(5 * layers_.size()), projected_(tokens_.size(), 3 * n_embd), context_(tokens_.size(), n_embd),
        active_(tokens_.size(), inner_), update_(tokens_.size(), n_embd) {
    for (const Layer& layer : layers_) {
      const Matrix *attention = &layer.attention_out, *mlp = &layer.mlp_in;
      matrices_.insert(matrices_.end(), {&layer.attention_in, form_.parallel ? mlp : attention,
                                         form_.parallel ? attention : mlp, &layer.mlp_out});
    }
    for (size_t token = 0; token < tokens_.size(); ++token) {
      if (token == 0 || tokens_[token].batch != tokens_[token - 1].batch) {
        first_tokens_.push_back(token);
      }
    }
    first_tokens_.push_back(tokens_.size());
  }

  void run() override {
    std::unique_ptr<Workspace> own; // of this thread, once it has something to do
    const auto workspace = [&]() -> Workspace& {
      if (own == nullptr) {
        own = std::make_unique<Workspace>(count(), std::max(n_embd_, inner_), cache_.slots);
      }
      return *own;
    };
    const Place begin = place();
    auto phase = phases_.begin();
    auto matrix = matrices_.begin();
    for (size_t index = 0; index < layers_.size(); ++index) {
      const Layer& layer = layers_[index];
      const auto into_mlp = [&](const float* norm, const float* norm_bias) {
        product(
            *phase++, begin, matrix++, [&] { return normed(workspace(), norm, norm_bias, layer.mlp_in); }, active_,
            [&](float* out, int64_t, int64_t first, int64_t size) {
              add(out, layer.mlp_in_bias + first, size);
              kernels().activate(out, size, form_.activation);
            });
      };
      product(
          *phase++, begin, matrix++,
          [&] { return normed(workspace(), layer.norm_1, layer.norm_1_bias, layer.attention_in); }, projected_,
          [&](float* out, int64_t, int64_t first, int64_t size) { add(out, layer.attention_in_bias + first, size); });
      if (form_.parallel) {
        into_mlp(layer.norm_1, layer.norm_1_bias);
      }
      const int64_t sequences = first_tokens_.size() - 1;
      phase++->share(
          begin, sequences * n_head_, 1, [&] { return &workspace(); },
          [&](Workspace* space, int64_t task, int64_t) {
            const int64_t sequence = task / n_head_;
            attend(*space, index, first_tokens_[sequence], first_tokens_[sequence + 1], task % n_head_);
          });
      residual(
          *phase++, begin, matrix++,
          [&] { return workspace().inputs(context_, count(), n_embd_, layer.attention_out.precision); },
          layer.attention_out_bias);
      if (!form_.parallel) {
        into_mlp(layer.norm_2, layer.norm_2_bias);
      }
      residual(
          *phase++, begin, matrix++,
          [&] { return workspace().inputs(active_, count(), inner_, layer.mlp_out.precision); }, layer.mlp_out_bias);
    }
  }

private:
  int64_t count() const {
    return tokens_.size();
  }

  static void add(float* x, const float* y, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      x[i] += y[i];
    }
  }

  // Every thread norms all rows itself: that is cheaper than waiting for each other once more.
  Inputs normed(Workspace& space, const float* weight, const float* bias, const Matrix& matrix) {
    for (int64_t token = 0; token < count(); ++token) {
      kernels().layer_norm(hidden_ + token * n_embd_, n_embd_, weight, bias, form_.epsilon, space.rows[token]);
    }
    return space.inputs(space.rows, count(), n_embd_, matrix.precision);
  }

  // out (tokens, n) = inputs times matrix; finish(out, token, first, size) is given each row's part.
  template <typename Prepare, typename Finish>
  void product(Phase& phase, Place begin, std::vector<const Matrix*>::const_iterator place, const Prepare& inputs,
               const Rows<float>& out, const Finish& finish) {
    const Matrix& matrix = **place;
    const int64_t size = part_rows(matrix, count(), threads_), end = Phase::stretch_of(begin, matrix.n, size).second;
    const void* next = nullptr; // what this thread begins with of the next matrix
    if (place + 1 != matrices_.end()) {
      const Matrix& other = **(place + 1);
      next = other.row(Phase::stretch_of(begin, other.n, part_rows(other, count(), threads_)).first);
    }
    phase.share(begin, matrix.n, size, inputs, [&](const Inputs& in, int64_t first, int64_t last) {
      kernels().product(matrix, in, first, last, out[0], out.stride, last == end ? next : matrix.row(last));
      for (int64_t token = 0; token < count(); ++token) {
        finish(out[token] + first, token, first, last - first);
      }
    });
  }

  // hidden += inputs times matrix + bias.
  template <typename Prepare>
  void residual(Phase& phase, Place begin, std::vector<const Matrix*>::const_iterator place, const Prepare& inputs,
                const float* bias) {
    product(phase, begin, place, inputs, update_, [&](float* out, int64_t token, int64_t first, int64_t size) {
      float* hidden = hidden_ + token * n_embd_ + first;
      add(hidden, out, size);
      add(hidden, bias + first, size);
    });
  }

  // Tokens [first, last) of one sequence, one head: keys and values into the cache, then each token's context.
  void attend(Workspace& space, int64_t layer, int64_t first, int64_t last, int64_t head) {
    const int64_t width = n_embd_ / n_head_;
    const int64_t sequence = (layer * cache_.batch + tokens_[first].batch) * n_head_ + head;
    const size_t offset = sequence * cache_.slots * width * cache_.element();
    char* keys = static_cast<char*>(cache_.keys) + offset;
    char* values = static_cast<char*>(cache_.values) + offset;
    for (int64_t token = first; token < last; ++token) {
      const float* own = projected_[token] + head * width;
      const size_t slot = tokens_[token].position * width * cache_.element();
      store(own + n_embd_, width, keys + slot);
      store(own + 2 * n_embd_, width, values + slot);
    }
    for (int64_t token = first; token < last; ++token) {
      const int64_t seen = tokens_[token].position + 1;
      const float* query = projected_[token] + head * width;
      const Matrix rows{keys, nullptr, seen, width, cache_.precision};
      kernels().product(rows, {query, nullptr, nullptr, 1, width, 0}, 0, seen, space.scores.data(), 0, nullptr);
      const float scale = 1.0f / std::sqrt(static_cast<float>(width));
      if (!form_.slopes.empty()) {
        const float rise = form_.slopes[head] / scale; // of scores that are not scaled yet
        for (int64_t slot = 0; slot < seen; ++slot) {
          space.scores[slot] += rise * static_cast<float>(slot + 1 - seen);
        }
      }
      kernels().softmax(space.scores.data(), seen, scale);
      kernels().weighted_sum(values, cache_.precision, space.scores.data(), seen, width,
                             context_[token] + head * width);
    }
  }

  void store(const float* x, int64_t count, char* to) const {
    if (cache_.precision == Precision::Float32) {
      std::copy_n(x, count, reinterpret_cast<float*>(to));
    } else {
      kernels().to_half(x, count, reinterpret_cast<uint16_t*>(to));
    }
  }

  const std::vector<Layer> layers_;
  std::vector<const Matrix*> matrices_; // of all layers, in the order in which they are used
  const std::vector<Token> tokens_;
  std::vector<int64_t> first_tokens_; // of each sequence, and the end
  float* const hidden_;
  const Cache cache_;
  const BlockForm form_;
  const int64_t n_head_, n_embd_, inner_;
  const int threads_;
  std::vector<Phase> phases_;
  const Rows<float> projected_, context_, active_, update_; // (tokens, 3C), (tokens, C), (tokens, I), (tokens, C)
};

} // namespace few_rows
