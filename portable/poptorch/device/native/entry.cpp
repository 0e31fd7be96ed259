// What Python calls, and the threads.

#include "kernels.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include <dlfcn.h>

namespace poptorch_kernels {
namespace {

const Kernels* named(const char* name) {
  for (const Kernels* kernels : {avx512_bf16_kernels(), avx512_kernels(), avx2_kernels(), &portable_kernels}) {
    if (kernels && (!name || !std::strcmp(name, kernels->name))) {
      return kernels;
    }
  }
  return nullptr;
}

const Kernels*& chosen() {
  static const Kernels* kernels = named(nullptr);
  return kernels;
}

// Runs work(place, task) for each task, on up to `threads` threads of the OpenMP that torch has loaded (GNU's, or
// LLVM's and Intel's, which have the same entry): a library with threads of its own would compete with torch's for the
// cores. Threads take tasks as they come; what a task computes does not depend on its thread.
template <typename Work> void share(int64_t threads, int64_t tasks, const Work& work) {
  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  static const Parallel parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  threads = std::min(threads, tasks);
  struct Job {
    const Work& work;
    int64_t tasks;
    std::atomic<int64_t> places{0}, next{0};
  } job{work, tasks};
  const auto run = [](void* data) {
    Job& job = *static_cast<Job*>(data);
    const int64_t place = job.places.fetch_add(1);
    for (int64_t task; (task = job.next.fetch_add(1)) < job.tasks;) {
      job.work(place, task);
    }
  };
  if (threads > 1 && parallel) {
    parallel(run, &job, static_cast<unsigned>(threads), 0);
  } else {
    run(&job);
  }
}

void attention(const Attention& call, int64_t threads, bool backward) {
  const Kernels& kernels = *chosen();
  const int64_t size = kernels.scratch_size(call, backward);
  share(threads, call.batch * call.heads, [&](int64_t place, int64_t task) {
    const auto run = backward ? kernels.backward : kernels.forward;
    run(call, task / call.heads, task % call.heads, call.scratch + place * size);
  });
}

const Products* products_of(Type type) {
  return type == kFloat32 ? float32_products() : bfloat16_products();
}

// A product of few rows and columns is cut along its depth, for there is not enough else to share out: the sums of
// kChunks pieces, which are added up at the end, whatever the number of threads.
constexpr int64_t kChunks = 8;

bool is_deep(const Product& call, const Products& products) {
  return call.depth >= 2 * kChunks * products.part_depth && call.rows <= products.part_rows &&
         call.rows * call.columns <= int64_t{1} << 17;
}

void deep_product(const Product& call, const Products& products, int64_t threads) {
  const int64_t parts = (call.depth + products.part_depth - 1) / products.part_depth;
  const int64_t depth = (parts + kChunks - 1) / kChunks * products.part_depth, size = call.rows * call.columns;
  float* sums = static_cast<float*>(call.scratch);
  char* panels = static_cast<char*>(call.scratch) + kChunks * size * sizeof(float);
  share(threads, kChunks, [&](int64_t place, int64_t chunk) {
    Product own = call;
    own.out = sums + chunk * size;
    own.out_row = call.columns;
    own.add = true;
    own.packed = static_cast<char*>(call.packed) + place * products.left_bytes(call);
    std::fill(own.out, own.out + size, 0.0f);
    const int64_t end = std::min(call.depth, (chunk + 1) * depth);
    for (Part part{0, chunk * depth, 0, 0}; part.start < end; part.start += products.part_depth) {
      part.depth = std::min(products.part_depth, end - part.start);
      products.pack_left(own, part, 0, call.rows);
      for (int64_t column = 0; column < call.columns; column += products.columns) {
        products.multiply(own, part, 0, call.rows, column, panels + place * products.panel_bytes);
      }
    }
  });
  share(threads, call.rows, [&](int64_t, int64_t row) {
    float* out = call.out + row * call.out_row;
    for (int64_t j = 0; j < call.columns; ++j) {
      float sum = call.add ? out[j] : 0.0f;
      for (int64_t chunk = 0; chunk < kChunks; ++chunk) {
        sum += sums[chunk * size + row * call.columns + j];
      }
      out[j] = sum;
    }
  });
}

void product(const Product& call, const Products& products, int64_t threads) {
  if (is_deep(call, products)) {
    deep_product(call, products, threads);
    return;
  }
  const int64_t panels = (call.columns + products.columns - 1) / products.columns;
  for (Part part{0, 0, 0, 0}; part.row < call.rows; part.row += products.part_rows) {
    const int64_t rows = std::min(products.part_rows, call.rows - part.row);
    const auto cut = [&](int64_t count) { // the rows of each of `count` runs, in whole tiles
      return ((rows + products.rows - 1) / products.rows + count - 1) / count * products.rows;
    };
    // Where there are few panels several threads share one, and each packs it.
    const int64_t packed = cut(4 * threads), run = cut((4 * threads + panels - 1) / panels);
    const int64_t packs = (rows + packed - 1) / packed, runs = (rows + run - 1) / run;
    part.ahead = runs == 1 ? std::min(threads, panels) * products.columns : 0; // threads take panels in turn
    for (part.start = 0; part.start < call.depth; part.start += products.part_depth) {
      part.depth = std::min(products.part_depth, call.depth - part.start);
      share(threads, packs, [&](int64_t, int64_t task) {
        products.pack_left(call, part, task * packed, std::min(rows, (task + 1) * packed));
      });
      share(threads, panels * runs, [&](int64_t place, int64_t task) {
        const int64_t first = task % runs * run;
        products.multiply(call, part, first, std::min(rows, first + run), task / runs * products.columns,
                          static_cast<char*>(call.scratch) + place * products.panel_bytes);
      });
    }
  }
}

} // namespace
} // namespace poptorch_kernels

using namespace poptorch_kernels;

extern "C" {

int64_t poptorch_kernels_version() {
  return kVersion;
}

// Which kernels run from now on: "avx512_bf16", "avx512", "avx2", "portable", or null for the fastest. Returns the
// name, or null where this processor does not run them.
const char* poptorch_kernels_choose(const char* name) {
  const Kernels* found = named(name);
  if (found) {
    chosen() = found;
  }
  return found ? found->name : nullptr;
}

int64_t poptorch_attention_scratch(const Attention* call, int64_t threads, bool backward) {
  return std::min(threads, call->batch * call->heads) * chosen()->scratch_size(*call, backward);
}

void poptorch_attention(const Attention* call, int64_t threads, bool backward) {
  attention(*call, threads, backward);
}

void poptorch_residual(const Residual* call, int64_t threads) {
  constexpr int64_t kPart = 64 * kGroup; // elements: 100 kB of memory read and written
  const Kernels& kernels = *chosen();
  share(threads, (call->count + kPart - 1) / kPart, [&](int64_t, int64_t task) {
    kernels.residual(*call, task * kPart, std::min(call->count, (task + 1) * kPart));
  });
}

void poptorch_gelu(const Gelu* call, int64_t threads) {
  const Kernels& kernels = *chosen();
  const int64_t parts = (call->rows + call->part - 1) / call->part;
  share(threads, parts, [&](int64_t, int64_t task) {
    kernels.gelu(*call, task * call->part, std::min(call->rows, (task + 1) * call->part));
  });
  if (!call->grad_bias) {
    return;
  }
  constexpr int64_t kColumns = 256; // as many are added up together
  share(threads, (call->width + kColumns - 1) / kColumns, [&](int64_t, int64_t task) {
    const int64_t first = task * kColumns, count = std::min(kColumns, call->width - first);
    double totals[kColumns] = {};
    for (int64_t part = 0; part < parts; ++part) {
      for (int64_t j = 0; j < count; ++j) {
        totals[j] += call->sums[part * call->width + first + j];
      }
    }
    std::copy(totals, totals + count, call->grad_bias + first);
  });
}

void poptorch_cross_entropy(const CrossEntropy* call, int64_t threads) {
  share(threads, call->rows, [&](int64_t, int64_t row) { chosen()->cross_entropy(*call, row); });
}

void poptorch_adam(const Adam* call, int64_t threads) {
  constexpr int64_t kPart = 1 << 14; // elements: 0.2 to 0.5 MB of memory read and written
  const Kernels& kernels = *chosen();
  std::vector<int64_t> ends; // parts up to the end of each piece
  int64_t parts = 0;
  for (int64_t i = 0; i < call->number; ++i) {
    ends.push_back(parts += (call->pieces[i].count + kPart - 1) / kPart);
  }
  share(threads, parts, [&](int64_t, int64_t task) {
    const int64_t i = std::upper_bound(ends.begin(), ends.end(), task) - ends.begin();
    const AdamPiece& piece = call->pieces[i];
    const int64_t first = (task - (i ? ends[i - 1] : 0)) * kPart;
    kernels.adam(*call, piece, first, std::min(piece.count, first + kPart));
  });
}

// Whether this processor multiplies operands of the type: float32, or bfloat16, with units for it.
bool poptorch_multiplies(Type type) {
  return products_of(type) != nullptr;
}

// Bytes that Product::packed and Product::scratch need, at addresses that are multiples of 64.
void poptorch_product_memory(const Product* call, Type type, int64_t threads, int64_t* packed, int64_t* scratch) {
  const Products& products = *products_of(type);
  const bool deep = is_deep(*call, products);
  *packed = products.left_bytes(*call) * (deep ? threads : 1);
  *scratch = threads * products.panel_bytes +
             (deep ? kChunks * call->rows * call->columns * static_cast<int64_t>(sizeof(float)) : 0);
}

// The operands are rounded to the type, one of those above.
void poptorch_product(const Product* call, Type type, int64_t threads) {
  product(*call, *products_of(type), threads);
}

void poptorch_philox(const uint32_t* counter, const uint32_t* key, uint32_t* result) {
  chosen()->philox(counter, key, result);
}

} // extern "C"
