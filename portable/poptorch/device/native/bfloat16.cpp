// Products of bfloat16 operands, which are rounded to it on the way in, with float32 sums, for x86 processors with
// AVX512_BF16. Nothing here runs, or is inlined elsewhere, without the check in bfloat16_products().

#include "kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
// Before the target is changed: what these headers define must stay plain code.
#include <algorithm>
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))),                 \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace poptorch_kernels {
namespace {

#include "packing.h"
#include "pairs.h"
#include "products.h"

} // namespace
} // namespace poptorch_kernels

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const poptorch_kernels::Products* poptorch_kernels::bfloat16_products() {
  const bool runs = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512bf16");
  return runs ? &poptorch_kernels::products<poptorch_kernels::PairWords> : nullptr;
}
#else
const poptorch_kernels::Products* poptorch_kernels::bfloat16_products() {
  return nullptr;
}
#endif
