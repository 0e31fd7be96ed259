// Threads that work on one operator together: woken once, in step by spinning, asleep afterwards.
//
// A decode step is dozens of short phases, each of which needs the one before. A parallel loop of torch costs
// microseconds for each of them, the barrier here about a tenth of one.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include <sched.h>
#include <unistd.h>

namespace few_rows {

inline void pause_briefly(int& spins) {
  if (++spins < 4000) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  } else {
    sched_yield(); // more threads than free cores: let the one that is waited for run
  }
}

// Where `threads` threads meet, any number of times.
class Barrier {
public:
  explicit Barrier(int threads) : threads_(threads) {
  }

  // `round` is the caller's own count of meetings, 0 at first.
  void meet(int64_t& round) {
    const int64_t all = ++round * threads_;
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == all) {
      return;
    }
    for (int spins = 0; arrived_.load(std::memory_order_acquire) < all;) {
      pause_briefly(spins);
    }
  }

private:
  const int threads_;
  alignas(64) std::atomic<int64_t> arrived_{0};
};

// Runs one job at a time on the calling thread and on threads of its own.
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

  // job(index) for index 0 ... threads - 1, all at the same time; returns when all are done. `job` must not throw.
  void run(int threads, const std::function<void(int)>& job) {
    std::lock_guard<std::mutex> one_at_a_time(running_);
    while (static_cast<int>(workers_) < threads - 1) {
      std::thread([this, index = ++workers_, seen = generation_] { work(index, seen); }).detach();
    }
    done_.store(0, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      threads_ = threads;
      ++generation_;
    }
    wake_.notify_all();
    job(0);
    for (int spins = 0; done_.load(std::memory_order_acquire) < threads - 1;) {
      pause_briefly(spins);
    }
  }

private:
  WorkerPool() = default;

  void work(int index, int64_t seen) {
    while (true) {
      const std::function<void(int)>* job = nullptr;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_ != seen; });
        seen = generation_;
        job = index < threads_ ? job_ : nullptr;
      }
      if (job != nullptr) {
        (*job)(index);
        done_.fetch_add(1, std::memory_order_acq_rel);
      }
    }
  }

  std::mutex running_;
  std::mutex mutex_;
  std::condition_variable wake_;
  const std::function<void(int)>* job_ = nullptr;
  int threads_ = 0;
  int workers_ = 0;
  int64_t generation_ = 0;
  alignas(64) std::atomic<int> done_{0};
};

} // namespace few_rows
