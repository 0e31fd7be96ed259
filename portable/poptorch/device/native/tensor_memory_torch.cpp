// torch's allocator of CPU tensors, with a reserve for the large ones (tensor_reserve.h).
//
// A library of its own, for it is compiled against one version of torch, whose classes it derives from and calls:
// tensor_memory.py takes it for that version alone.
#include "tensor_reserve.h"

#include <c10/core/CPUAllocator.h>
#include <c10/util/env.h>

#include <pthread.h>

#ifndef TENSOR_MEMORY_TORCH
#error "TENSOR_MEMORY_TORCH: the version and commit of the torch that this is built for, in quotes"
#endif

namespace {

using tensor_reserve::Reserve;

// Below, the C library's holes are small and its caches of each thread fast. Above, the C library gives back to the
// system what is freed, as memory.py tells it to.
constexpr size_t kSmallest = size_t(64) << 10, kLargest = size_t(1) << 30;

// Neither is ever destroyed: tensors are freed until the process has ended, and by any thread.
c10::Allocator* before = nullptr; // torch's own
Reserve& reserve() {
  static Reserve& only = *new Reserve(c10::utils::check_env("THP_MEM_ALLOC_ENABLE").value_or(false));
  return only;
}

void release(void* data) {
  if (!reserve().owns(data)) {
    before->raw_deleter()(data);
    return;
  }
  c10::profiledCPUMemoryReporter().Delete(data); // while nobody else can get the address
  reserve().release(data);
}

class TensorMemory final : public c10::Allocator {
public:
  c10::DataPtr allocate(size_t size) override {
    if (size >= kSmallest && size <= kLargest) {
      if (void* const data = reserve().allocate(size)) {
        c10::profiledCPUMemoryReporter().New(data, size);
        return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
      }
    }
    void* const data = from_torch(size);
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override {
    return &release;
  }

  void copy_data(void* to, const void* from, size_t size) const override {
    default_copy_data(to, from, size);
  }

private:
  // By torch's own allocator, with its errors. What is free here may be what it lacks.
  static void* from_torch(size_t size) {
    try {
      return before->raw_allocate(size);
    } catch (const c10::Error&) {
      if (!reserve().give_back()) {
        throw;
      }
    }
    return before->raw_allocate(size);
  }
};

} // namespace

extern "C" {

// What it was built for: "2.13.0+cpu cf30153c…", the version and the commit.
const char* poptorch_tensor_memory_torch() {
  return TENSOR_MEMORY_TORCH;
}

// Makes torch use the reserve from now on, and for good. Tensors made before stay as they are. False, and nothing
// changes, where another allocator has taken the place of torch's own. A thread that makes a tensor meanwhile gets it
// from the one or the other.
bool poptorch_tensor_memory_install() {
  static const bool installed = [] {
    before = c10::GetCPUAllocator();
    if (before != c10::GetDefaultCPUAllocator() || !before->raw_deleter()) {
      return false;
    }
    pthread_atfork([] { reserve().mutex().lock(); }, [] { reserve().mutex().unlock(); },
                   [] { reserve().mutex().unlock(); });
    auto* const memory = new TensorMemory;
    c10::SetCPUAllocator(memory, 1);
    return c10::GetCPUAllocator() == memory;
  }();
  return installed;
}

void poptorch_tensor_memory_give_back() {
  reserve().give_back();
}

void poptorch_tensor_memory_statistics(tensor_reserve::Statistics* statistics) {
  *statistics = reserve().statistics();
}
}
