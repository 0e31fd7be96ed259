// Dropout, and the sum after it. Included after vectors.h, in the same namespace.

template <bool Add> void residual_part(const Residual& call, int64_t first, int64_t last) {
  const float kept_scale = 65536.0f / call.threshold;
  for (; first < last; first += kGroup) {
    const uint64_t counter = static_cast<uint64_t>(first / kGroup) * 16;
    const auto each = [&](const float* x, const float* residual, float* out) {
      masks_of_group(static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, kFlat, call.key,
                     call.threshold, [&](int v, Ints kept) {
                       const Floats dropped = where(kept, load(x + v * kWidth) * kept_scale);
                       store(out + v * kWidth, Add ? load(residual + v * kWidth) + dropped : dropped);
                     });
    };
    if (first + kGroup <= last) {
      each(call.x + first, Add ? call.residual + first : nullptr, call.out + first);
    } else {
      float x[kGroup] = {}, residual[kGroup] = {}, out[kGroup];
      std::copy(call.x + first, call.x + last, x);
      if (Add) {
        std::copy(call.residual + first, call.residual + last, residual);
      }
      each(x, residual, out);
      std::copy(out, out + (last - first), call.out + first);
    }
  }
}

void residual(const Residual& call, int64_t first, int64_t last) {
  if (call.residual) {
    residual_part<true>(call, first, last);
  } else {
    residual_part<false>(call, first, last);
  }
}
