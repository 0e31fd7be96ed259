// Which of two ways to compute something is the faster one on this machine.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>

namespace speed {

// How many times as long the first one takes as the second: the median of several samples of both, in turn, for one
// alone may have met with another program.
template <typename First, typename Second> double ratio(const First& first, const Second& second) {
  const auto seconds = [](const auto& run) {
    const auto start = std::chrono::steady_clock::now();
    run();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  std::array<double, 7> ratios;
  for (int sample = -1; sample < static_cast<int>(ratios.size()); ++sample) { // one more, which warms up
    const double one = seconds(first), other = seconds(second);
    if (sample >= 0) {
      ratios[sample] = one / other;
    }
  }
  std::nth_element(ratios.begin(), ratios.begin() + ratios.size() / 2, ratios.end());
  return ratios[ratios.size() / 2];
}

} // namespace speed
