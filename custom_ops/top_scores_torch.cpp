// TopScores: the k best scores of each row of logits. top_scores.py says what it means.

#include "few_rows_kernels.h"
#include "worker_pool.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

namespace {

using at::Tensor;

constexpr int64_t kBlock = 256; // logits that are looked at together: most blocks hold nothing of interest
constexpr int64_t kPart = 16;   // blocks that a thread takes at a time
constexpr int64_t kSorted = 16; // of more than 1 / 16 of the vocabulary all scores are sorted

struct Scored {
  float score;
  int32_t id;
};

// Whether `a` is the better one. Never true of a NaN.
bool better(const Scored& a, const Scored& b) {
  return a.score > b.score || (a.score == b.score && a.id < b.id);
}

// The best first, and of equal scores the smaller id: by digits of 11 bits, which takes a tenth of a sort's time.
std::vector<Scored> sorted(const std::vector<float>& scores) {
  struct Entry {
    uint32_t key; // the larger the score, the smaller
    int32_t id;
  };
  constexpr int kBits = 11, kDigits = 3;
  const size_t count = scores.size();
  std::vector<Entry> entries(count), other(count);
  std::vector<uint32_t> places(kDigits << kBits);
  for (size_t i = 0; i < count; ++i) {
    const float score = scores[i] + 0.0f; // -0 and 0 are equal
    uint32_t bits;
    std::memcpy(&bits, &score, sizeof bits);
    entries[i] = {bits >> 31 ? bits : ~bits & 0x7FFFFFFFu, static_cast<int32_t>(i)};
    for (int digit = 0; digit < kDigits; ++digit) {
      ++places[(digit << kBits) + (entries[i].key >> (digit * kBits) & ((1u << kBits) - 1))];
    }
  }
  for (int digit = 0; digit < kDigits; ++digit) {
    uint32_t* next = places.data() + (digit << kBits);
    for (uint32_t value = 0, begin = 0; value < 1u << kBits; ++value) {
      begin += std::exchange(next[value], begin);
    }
    for (const Entry& entry : entries) {
      other[next[entry.key >> (digit * kBits) & ((1u << kBits) - 1)]++] = entry;
    }
    entries.swap(other);
  }
  std::vector<Scored> result(count);
  for (size_t i = 0; i < count; ++i) {
    result[i] = {scores[entries[i].id], entries[i].id};
  }
  return result;
}

class TopScores final : public few_rows::Job {
public:
  TopScores(const Tensor& logits, const bool* seen, int64_t k, double penalty, const Tensor& scores, const Tensor& ids,
            const Tensor& log_probs, int threads)
      : Job(threads), logits_(logits.data_ptr<float>()), seen_(seen), rows_(logits.size(0)), vocab_(logits.size(1)),
        blocks_((vocab_ + kBlock - 1) / kBlock), k_(k), penalty_(static_cast<float>(penalty)),
        scores_(scores.data_ptr<float>()), ids_(ids.data_ptr<int32_t>()), log_probs_(log_probs.data_ptr<float>()),
        largest_(rows_ * blocks_), sums_(rows_ * blocks_) {
  }

  void run() override {
    const few_rows::Place begin = place();
    const auto nothing = [] { return 0; };
    summaries_.share(begin, rows_ * blocks_, kPart, nothing, [this](int, int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        summarise(block);
      }
    });
    choices_.share(begin, rows_, 1, nothing, [this](int, int64_t row, int64_t) { choose(row); });
  }

private:
  // The largest logit of a block, and the sum of the exponentials of their distances to it.
  void summarise(int64_t block) {
    const few_rows::Kernels& kernels = few_rows::kernels();
    const int64_t first = block % blocks_ * kBlock, size = std::min(kBlock, vocab_ - first);
    const float* logits = logits_ + block / blocks_ * vocab_ + first;
    largest_[block] = kernels.largest(logits, size);
    if (largest_[block] > -std::numeric_limits<float>::infinity()) {
      sums_[block] = kernels.sum_of_exp(logits, size, largest_[block]);
    } else { // nothing but -inf, or a NaN
      sums_[block] = std::any_of(logits, logits + size, [](float logit) { return std::isnan(logit); }) ? NAN : 0.0;
    }
  }

  float penalised(const float* logits, const bool* seen, int64_t id) const {
    const float logit = logits[id];
    return seen == nullptr || !seen[id] ? logit : logit > 0 ? logit / penalty_ : logit * penalty_;
  }

  std::vector<Scored> best(const float* logits, const bool* seen, const float* largest) const {
    if (k_ * kSorted > vocab_) {
      std::vector<float> scores(vocab_);
      for (int64_t id = 0; id < vocab_; ++id) {
        scores[id] = penalised(logits, seen, id);
      }
      return sorted(scores);
    }
    const bool only_lowered = seen == nullptr || penalty_ >= 1.0f; // no score is above its logit
    std::vector<Scored> heap;                                      // the worst of the best in front
    heap.reserve(k_ + 1);
    for (int64_t block = 0; block < blocks_; ++block) {
      const int64_t first = block * kBlock, last = std::min(vocab_, first + kBlock);
      if (static_cast<int64_t>(heap.size()) == k_ && only_lowered && largest[block] <= heap.front().score) {
        continue;
      }
      for (int64_t id = first; id < last; ++id) {
        const Scored found{penalised(logits, seen, id), static_cast<int32_t>(id)};
        if (static_cast<int64_t>(heap.size()) < k_) {
          heap.push_back(found);
          std::push_heap(heap.begin(), heap.end(), better);
        } else if (found.score > heap.front().score) { // of equal ones the first stays
          heap.push_back(found);
          std::push_heap(heap.begin(), heap.end(), better);
          std::pop_heap(heap.begin(), heap.end(), better);
          heap.pop_back();
        }
      }
    }
    std::sort_heap(heap.begin(), heap.end(), better);
    return heap;
  }

  void choose(int64_t row) const {
    const float *logits = logits_ + row * vocab_, *largest = largest_.data() + row * blocks_;
    const std::vector<Scored> found = best(logits, seen_ == nullptr ? nullptr : seen_ + row * vocab_, largest);
    const float most = *std::max_element(largest, largest + blocks_);
    double sum = 0.0;
    for (int64_t block = 0; block < blocks_; ++block) {
      const double own = sums_[row * blocks_ + block];
      sum += own == 0.0 ? 0.0 : own * std::exp(static_cast<double>(largest[block]) - most);
    }
    const double log_sum = most + std::log(sum);
    for (int64_t i = 0; i < k_; ++i) {
      scores_[row * k_ + i] = found[i].score;
      ids_[row * k_ + i] = found[i].id;
      log_probs_[row * k_ + i] = static_cast<float>(logits[found[i].id] - log_sum);
    }
  }

  const float* const logits_;
  const bool* const seen_;
  const int64_t rows_, vocab_, blocks_, k_;
  const float penalty_;
  float* const scores_;
  int32_t* const ids_;
  float* const log_probs_;
  std::vector<float> largest_; // (rows, blocks)
  std::vector<double> sums_;   // (rows, blocks)
  few_rows::Phase summaries_, choices_;
};

using Outputs = std::tuple<Tensor, Tensor, Tensor>;

Outputs shapes(const Tensor& logits, const Tensor&, int64_t k, double) {
  const auto of = [&](at::ScalarType type) { return at::empty({logits.size(0), k}, logits.options().dtype(type)); };
  return {of(at::kFloat), of(at::kInt), of(at::kFloat)};
}

void check(const Tensor& logits, const Tensor& seen, int64_t k, double penalty) {
  TORCH_CHECK_VALUE(logits.dim() == 2 && logits.scalar_type() == at::kFloat, "logits must be (B, V) in float32");
  TORCH_CHECK_VALUE(penalty == 1.0 || (seen.scalar_type() == at::kBool && seen.sizes() == logits.sizes()),
                    "seen must be bool, of the logits' shape");
  TORCH_CHECK_VALUE(1 <= k && k <= logits.size(1), "k must be 1 to ", logits.size(1), ", not ", k);
  TORCH_CHECK_VALUE(penalty > 0, "penalty must be above 0, not ", penalty);
}

// An exponential takes as long as reading a dozen bytes.
int useful_threads(const Tensor& logits, int threads) {
  return few_rows::useful_threads(12 * logits.nbytes(), threads);
}

Outputs top_scores(const Tensor& logits, const Tensor& seen, int64_t k, double penalty) {
  check(logits, seen, k, penalty);
  const Tensor rows = logits.contiguous(), told = seen.contiguous();
  const Outputs found = shapes(logits, seen, k, penalty);
  const bool* flags = penalty == 1.0 ? nullptr : told.data_ptr<bool>();
  const int threads = useful_threads(rows, at::get_num_threads());
  few_rows::WorkerPool::instance().run(threads,
                                       std::make_shared<TopScores>(rows, flags, k, penalty, std::get<0>(found),
                                                                   std::get<1>(found), std::get<2>(found), threads));
  return found;
}

Outputs top_scores_by_torch(const Tensor& logits, const Tensor& seen, int64_t k, double penalty) {
  check(logits, seen, k, penalty);
  Tensor scores = logits;
  if (penalty != 1.0) {
    scores = at::where(seen, at::where(logits > 0, logits / penalty, logits * penalty), logits);
  }
  const auto [best, ids] = at::topk(scores, k);
  return {best, ids.to(at::kInt), logits.gather(-1, ids) - at::logsumexp(logits, -1, true)};
}

} // namespace

TORCH_LIBRARY_FRAGMENT(gpt2_decode, m) {
  m.def("TopScores(Tensor logits, Tensor seen, *, int k, float penalty) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(gpt2_decode, CPU, m) {
  m.impl("TopScores", top_scores);
}

TORCH_LIBRARY_IMPL(gpt2_decode, CUDA, m) {
  m.impl("TopScores", top_scores_by_torch);
}

TORCH_LIBRARY_IMPL(gpt2_decode, Meta, m) {
  m.impl("TopScores", shapes);
}
