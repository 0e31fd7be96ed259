// TopScores: the k best scores of each row of logits. top_scores.py says what it means.

#include "few_rows_kernels.h"
#include "worker_pool.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

namespace {

using at::Tensor;

constexpr int64_t kBlock = 256; // logits that are looked at together: most blocks hold nothing of interest

struct Scored {
  float score;
  int32_t id;
};

// Whether `a` is the better one. Never true of a NaN.
bool better(const Scored& a, const Scored& b) {
  return a.score > b.score || (a.score == b.score && a.id < b.id);
}

class TopScores final : public few_rows::Job {
public:
  TopScores(const Tensor& logits, const bool* seen, int64_t k, double penalty, const Tensor& scores, const Tensor& ids,
            const Tensor& log_probs, int threads)
      : Job(threads), logits_(logits.data_ptr<float>()), seen_(seen), rows_(logits.size(0)), vocab_(logits.size(1)),
        k_(k), penalty_(static_cast<float>(penalty)), scores_(scores.data_ptr<float>()), ids_(ids.data_ptr<int32_t>()),
        log_probs_(log_probs.data_ptr<float>()) {
  }

  void run() override {
    phase_.share(place(), rows_, 1, [] { return 0; }, [this](int, int64_t row, int64_t) { one_row(row); });
  }

private:
  float penalised(const float* logits, const bool* seen, int64_t id) const {
    const float logit = logits[id];
    return seen == nullptr || !seen[id] ? logit : logit > 0 ? logit / penalty_ : logit * penalty_;
  }

  void one_row(int64_t row) const {
    const few_rows::Kernels& kernels = few_rows::kernels();
    const float* logits = logits_ + row * vocab_;
    const bool* seen = seen_ == nullptr ? nullptr : seen_ + row * vocab_;
    const bool only_lowered = seen == nullptr || penalty_ >= 1.0f; // no score is above its logit
    std::vector<Scored> heap;                                      // the worst of the best in front
    heap.reserve(k_ + 1);
    float largest = -std::numeric_limits<float>::infinity();
    for (int64_t first = 0; first < vocab_; first += kBlock) {
      const int64_t last = std::min(vocab_, first + kBlock);
      const float most = kernels.largest(logits + first, last - first);
      largest = std::max(largest, most);
      if (static_cast<int64_t>(heap.size()) == k_ && only_lowered && most <= heap.front().score) {
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
    double sum = 0.0;
    for (int64_t first = 0; first < vocab_; first += kBlock) {
      sum += kernels.sum_of_exp(logits + first, std::min(kBlock, vocab_ - first), largest);
    }
    const double log_sum = largest + std::log(sum);
    for (int64_t i = 0; i < k_; ++i) {
      scores_[row * k_ + i] = heap[i].score;
      ids_[row * k_ + i] = heap[i].id;
      log_probs_[row * k_ + i] = static_cast<float>(logits[heap[i].id] - log_sum);
    }
  }

  const float* const logits_;
  const bool* const seen_;
  const int64_t rows_, vocab_, k_;
  const float penalty_;
  float* const scores_;
  int32_t* const ids_;
  float* const log_probs_;
  few_rows::Phase phase_;
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

Outputs top_scores(const Tensor& logits, const Tensor& seen, int64_t k, double penalty) {
  check(logits, seen, k, penalty);
  const Tensor rows = logits.contiguous(), told = seen.contiguous();
  const Outputs found = shapes(logits, seen, k, penalty);
  const bool* flags = penalty == 1.0 ? nullptr : told.data_ptr<bool>();
  const int threads = few_rows::useful_threads(rows.nbytes(), at::get_num_threads());
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
