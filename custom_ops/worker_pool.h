// Threads that work on one operator together: woken once, in step by spinning, asleep soon afterwards.
//
// A decode step is dozens of short phases, each of which needs the one before. A parallel loop of torch costs
// microseconds for each of them, a phase here about a tenth of one. Nobody waits for a thread that does not run:
// phases are shared out in small parts, and a phase is over when its parts are done, whoever did them.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include <sched.h>
#include <unistd.h>

namespace few_rows {

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// How many threads a job that reads so many bytes is worth.
inline int useful_threads(int64_t bytes, int threads) {
  return static_cast<int>(std::clamp<int64_t>(bytes >> 19, 1, threads));
}

// Where a thread begins to help, of how many places: each thread of a job has another one.
struct Place {
  int64_t index, count;
};

// One phase of a job: [0, total) in parts.
class Phase {
public:
  // Takes part in the phase and returns when all of it is done. `prepare` runs before the first part that this thread
  // gets, if it gets one; what it returns is handed to work(prepared, first, last).
  //
  // [0, total) falls into a stretch for each place. A thread takes the parts of its own one after the other, in the
  // order of memory, and then what is left of the others'.
  template <typename Prepare, typename Work>
  void share(Place place, int64_t total, int64_t size, const Prepare& prepare, const Work& work) {
    const int64_t count = std::min(place.count, kStretches);
    std::optional<decltype(prepare())> prepared;
    int64_t own = 0;
    for (int64_t turn = 0; turn < count; ++turn) {
      const int64_t stretch = (place.index + turn) % count;
      const auto [begin, end] = stretch_of({stretch, place.count}, total, size);
      std::atomic<int64_t>& next = stretches_[stretch].next;
      for (int64_t first; (first = begin + next.fetch_add(size, std::memory_order_relaxed)) < end;) {
        if (!prepared) {
          prepared.emplace(prepare());
        }
        const int64_t last = std::min(end, first + size);
        work(*prepared, first, last);
        own += last - first;
      }
    }
    if (own > 0) {
      done_.fetch_add(own, std::memory_order_acq_rel);
    }
    for (int spins = 0; done_.load(std::memory_order_acquire) < total; ++spins) {
      if (spins < 4000) {
        pause_briefly();
      } else {
        sched_yield(); // more threads than free cores: let the one that is waited for run
      }
    }
  }

  // What a thread takes first of [0, total): from where to where.
  static std::pair<int64_t, int64_t> stretch_of(Place place, int64_t total, int64_t size) {
    const int64_t count = std::min(place.count, kStretches);
    const int64_t length = ((total + size - 1) / size + count - 1) / count * size; // a multiple of `size`
    const int64_t begin = std::min(total, place.index % count * length);
    return {begin, std::min(total, begin + length)};
  }

private:
  static constexpr int64_t kStretches = 8;

  struct alignas(64) Stretch {
    std::atomic<int64_t> next{0}; // from its beginning
  };

  Stretch stretches_[kStretches];
  alignas(64) std::atomic<int64_t> done_{0};
};

// Work for several threads. Each of them calls run(), some perhaps only after the work is done.
class Job {
public:
  explicit Job(int threads) : threads_(threads) {
  }
  virtual ~Job() = default;
  virtual void run() = 0; // must not throw

protected:
  // Asked for once by each thread.
  Place place() {
    return {arrived_.fetch_add(1, std::memory_order_relaxed), threads_};
  }

private:
  const int64_t threads_;
  std::atomic<int64_t> arrived_{0};
};

// Runs jobs on the calling thread and on threads of its own.
class WorkerPool {
public:
  // The pool of this process. Never destroyed: its threads may outlive static objects. A forked child, which has
  // none of the threads, gets a new one.
  static WorkerPool& instance() {
    static std::mutex guard;
    static WorkerPool* pool = nullptr;
    static pid_t owner = 0;
    std::lock_guard<std::mutex> lock(guard);
    if (pool == nullptr || owner != getpid()) {
      pool = new WorkerPool();
      owner = getpid();
    }
    return *pool;
  }

  // Returns when the caller's own job->run() does: then all phases are done.
  void run(int threads, const std::shared_ptr<Job>& job) {
    if (threads > 1) {
      std::lock_guard<std::mutex> lock(mutex_);
      while (workers_ < threads - 1) {
        std::thread([this, index = ++workers_, seen = generation_.load()] { work(index, seen); }).detach();
      }
      job_ = job;
      threads_ = threads;
      generation_.fetch_add(1, std::memory_order_release);
      if (asleep_ > 0) {
        wake_.notify_all();
      }
    }
    job->run();
  }

private:
  // The operators of a step follow each other within microseconds, and a thread that sleeps needs dozens to wake up.
  static constexpr std::chrono::microseconds kPatience{200};

  WorkerPool() = default;

  void work(int index, int64_t seen) {
    while (true) {
      const auto begin = std::chrono::steady_clock::now();
      while (generation_.load(std::memory_order_acquire) == seen &&
             std::chrono::steady_clock::now() - begin < kPatience) {
        for (int spins = 0; spins < 16; ++spins) {
          pause_briefly();
        }
      }
      std::shared_ptr<Job> job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        ++asleep_;
        wake_.wait(lock, [&] { return generation_.load() != seen; });
        --asleep_;
        seen = generation_.load();
        if (index < threads_) {
          job = job_;
        }
      }
      if (job != nullptr) {
        job->run();
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::shared_ptr<Job> job_;
  int threads_ = 0;
  int workers_ = 0;
  int asleep_ = 0;
  std::atomic<int64_t> generation_{0};
};

} // namespace few_rows
