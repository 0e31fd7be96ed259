// A reserve of memory that large blocks are cut from and come back to: where one lay, another of its size fits exactly.
//
// Blocks lie side by side in one area, which grows at its end as the system's heap does. A request takes the lowest
// free block that is large enough, and leaves the rest free; what is freed joins its free neighbours, and is kept
// unless the system has no more. Taking the smallest one that is large enough needs as little for a step of GPT-2 small
// on 4 x 256 tokens, but more elsewhere: small blocks of the next step go where a large one lay, which then finds no
// room. The seed's recipe took 2.93 GB that way instead of 2.83.
//
// What is known of the blocks is kept outside of them: none is touched for that, and none is larger than asked for.
// The area's place is looked for once, amid free addresses, and not taken: limits and reports of the process's memory
// count what is used, as of any heap.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <set>
#include <utility>

#include <cerrno>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000 // glibc before 2.27; a kernel before 4.17 takes the address as a wish
#endif

namespace tensor_reserve {

constexpr size_t kAlignment = 64;           // bytes: a cache line
constexpr size_t kGrowth = size_t(2) << 20; // bytes, those of a huge page: the area grows to multiples of it
constexpr size_t kMostRoom = size_t(1) << 40, kLeastRoom = size_t(1) << 30; // addresses looked for, in bytes
// Between two blocks, so that those whose sizes are multiples of a page do not all begin at the same place in one,
// which is the same set of a cache. Neither this nor other distances made a difference that could be measured (Zen 5).
constexpr size_t kGap = kAlignment;

struct Statistics {
  int64_t bytes, free_bytes, free_blocks, blocks; // of the reserve; free ones; free ones, and those in use
};

class Reserve {
public:
  explicit Reserve(bool huge_pages) : huge_pages_(huge_pages) {
  }

  // `size` bytes at a multiple of kAlignment; null if the system gives none.
  void* allocate(size_t size) noexcept {
    size = round_up(size, kAlignment) + kGap;
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
      const std::pair<size_t, uintptr_t> wanted{size, 0};
      if (sizes_.lower_bound(wanted) == sizes_.end() && !grow(size)) {
        return nullptr;
      }
      const auto lower = [](const auto& a, const auto& b) { return a.second < b.second; };
      return take(std::min_element(sizes_.lower_bound(wanted), sizes_.end(), lower), size);
    } catch (const std::bad_alloc&) {
      return nullptr;
    }
  }

  // Whether a block in use begins there. It may be asked about any address.
  bool owns(const void* data) noexcept {
    const auto at = reinterpret_cast<uintptr_t>(data);
    if (at < lowest_.load(std::memory_order_relaxed) || at >= highest_.load(std::memory_order_relaxed)) {
      return false;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto block = blocks_.find(at);
    return block != blocks_.end() && !is_free(block);
  }

  // Takes back a block that owns() knows. It needs no memory.
  void release(void* data) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto block = blocks_.find(reinterpret_cast<uintptr_t>(data));
    make_free(block);
    block = join(block);
    if (scarce_) {
      try {
        unmap(block);
      } catch (const std::bad_alloc&) { // it stays
      }
    }
  }

  // Gives the pages of free blocks back to the system. Returns whether there were any.
  bool give_back() noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    bool any = false;
    try {
      for (auto block = blocks_.begin(); block != blocks_.end();) {
        const auto next = std::next(block);
        any |= is_free(block) && unmap(block);
        block = next;
      }
    } catch (const std::bad_alloc&) { // the rest stays
    }
    return any;
  }

  Statistics statistics() noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    Statistics sum{};
    for (const auto& block : blocks_) {
      sum.bytes += block.second.size;
    }
    for (const auto& entry : sizes_) {
      sum.free_bytes += entry.first;
    }
    sum.free_blocks = sizes_.size();
    sum.blocks = blocks_.size() - sizes_.size();
    return sum;
  }

  // For the time of a fork, so that the child's copy is whole.
  std::mutex& mutex() {
    return mutex_;
  }

private:
  using Sizes = std::set<std::pair<size_t, uintptr_t>>; // size and place of the free blocks
  struct Block {
    size_t size;
    Sizes::node_type entry; // while the block is in use; so that to free it takes no memory
  };
  using Blocks = std::map<uintptr_t, Block>;

  static size_t round_up(size_t number, size_t multiple) {
    return (number + multiple - 1) / multiple * multiple;
  }

  static size_t page() {
    return sysconf(_SC_PAGESIZE);
  }

  static bool is_free(Blocks::iterator block) {
    return block->second.entry.empty();
  }

  void make_free(Blocks::iterator block) {
    auto& [size, entry] = block->second;
    entry.value() = {size, block->first};
    sizes_.insert(std::move(entry));
    entry = {};
  }

  Blocks::iterator insert(uintptr_t at, size_t size) {
    Sizes one{{size, at}};
    return blocks_.try_emplace(at, Block{size, one.extract(one.begin())}).first;
  }

  void* take(Sizes::iterator free, size_t size) {
    const auto block = blocks_.find(free->second);
    const size_t rest = block->second.size - size;
    if (rest) { // may run out of memory: nothing has changed then
      make_free(insert(block->first + size, rest));
      block->second.size = size;
    }
    block->second.entry = sizes_.extract(free);
    return reinterpret_cast<void*>(block->first);
  }

  // Makes one block of a free one and its free neighbours, and returns it.
  Blocks::iterator join(Blocks::iterator block) {
    if (block != blocks_.begin()) {
      const auto previous = std::prev(block);
      if (absorb(previous, block)) {
        block = previous;
      }
    }
    const auto next = std::next(block);
    if (next != blocks_.end()) {
      absorb(block, next);
    }
    return block;
  }

  bool absorb(Blocks::iterator left, Blocks::iterator right) {
    if (!is_free(left) || !is_free(right) || left->first + left->second.size != right->first) {
      return false;
    }
    resize_free(left, left->second.size + right->second.size);
    sizes_.erase({right->second.size, right->first});
    blocks_.erase(right);
    return true;
  }

  void resize_free(Blocks::iterator block, size_t size) {
    auto entry = sizes_.extract({block->second.size, block->first});
    entry.value().first = block->second.size = size;
    sizes_.insert(std::move(entry));
  }

  // The free block at the end of the area, if there is one.
  Blocks::iterator free_end() {
    auto block = blocks_.lower_bound(end_);
    if (block == blocks_.begin()) {
      return blocks_.end();
    }
    --block;
    return is_free(block) && block->first + block->second.size == end_ ? block : blocks_.end();
  }

  // Makes room for a block of `size` at the end of the area, or of another one where something is in the way.
  bool grow(size_t size) {
    for (int tries = 0; tries < 3; ++tries) {
      if (end_) {
        const auto last = free_end();
        const size_t there = last == blocks_.end() ? 0 : last->second.size;
        const int error = extend(size - there);
        if (error != EEXIST) {
          return !error;
        }
      }
      end_ = find_room(size);
      if (!end_) {
        return false;
      }
    }
    return false;
  }

  // Returns 0 or an error number, which is EEXIST where the addresses are taken.
  int extend(size_t size) {
    int error = EEXIST;
    for (const size_t unit : {kGrowth, page()}) {
      if (blocks_.count(end_)) { // of another area
        return EEXIST;
      }
      const size_t bytes = round_up(end_ + size, unit) - end_;
      const auto block = insert(end_, bytes); // first, for it may run out of memory
      error = map(bytes);
      scarce_ = error && error != EEXIST;
      if (!error) {
        make_free(block);
        end_ += bytes;
        lowest_.store(std::min(lowest_.load(), block->first), std::memory_order_relaxed);
        highest_.store(std::max(highest_.load(), end_), std::memory_order_relaxed);
        join(block);
        return 0;
      }
      blocks_.erase(block);
      if (error == EEXIST) {
        break;
      }
    }
    return error;
  }

  // The same numbers.
  int map(size_t bytes) {
    void* const wanted = reinterpret_cast<void*>(end_);
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    void* const found = mmap(wanted, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (found == MAP_FAILED) {
      return errno;
    }
    if (found != wanted) {
      munmap(found, bytes);
      return EEXIST;
    }
    if (huge_pages_) {
      madvise(found, bytes, MADV_HUGEPAGE);
    }
    return 0;
  }

  // Where an area can grow: in the middle of as many free addresses as there are. The system goes on handing them out
  // from one of their ends. 0 if it has none.
  static uintptr_t find_room(size_t size) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    const size_t least = std::max(kLeastRoom, 4 * (size + kGrowth));
    for (size_t room = std::max(kMostRoom, least); room >= least; room /= 2) {
      void* const found = mmap(nullptr, room, PROT_NONE, flags, -1, 0);
      if (found != MAP_FAILED) {
        munmap(found, room);
        return round_up(reinterpret_cast<uintptr_t>(found) + room / 2, kGrowth);
      }
    }
    return 0;
  }

  // Gives the whole pages of a free block back. Their addresses are not used again, unless by the system.
  bool unmap(Blocks::iterator block) {
    const size_t unit = huge_pages_ ? kGrowth : page();
    const uintptr_t start = block->first, stop = start + block->second.size;
    const uintptr_t from = round_up(start, unit), to = stop / unit * unit;
    if (from >= to) {
      return false;
    }
    const auto rest = to < stop ? insert(to, stop - to) : blocks_.end(); // first, for it may run out of memory
    if (munmap(reinterpret_cast<void*>(from), to - from)) {
      if (rest != blocks_.end()) {
        blocks_.erase(rest);
      }
      return false;
    }
    if (rest != blocks_.end()) {
      make_free(rest);
    } else if (to == end_) {
      end_ = from;
    }
    if (start < from) {
      resize_free(block, from - start);
    } else {
      sizes_.erase({stop - start, start});
      blocks_.erase(block);
    }
    return true;
  }

  const bool huge_pages_;
  std::mutex mutex_;
  Blocks blocks_; // of every area, free and in use
  Sizes sizes_;
  uintptr_t end_ = 0; // of the area that grows
  // The system had no more the last time. What is freed then is given back: others may need it, as the C library does.
  bool scarce_ = false;
  std::atomic<uintptr_t> lowest_{UINTPTR_MAX}, highest_{0};
};

} // namespace tensor_reserve
