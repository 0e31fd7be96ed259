// Philox 4x32-10 over the lanes of vectors, and the masks made of it.
//
// Included by vectors.h inside an anonymous namespace, with kWidth and the types of its vectors defined.

// A vector holds kWidth / 2 lanes of 64 bits, of which the lower 32 count: what a product leaves above them is ignored
// by the next one.
struct Words {
  Wide even, odd; // of the lanes of a vector of 32 bits
};

struct Block {
  Words word[4];
};

ALWAYS_INLINE void philox_rounds(Block& block, uint64_t key) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
  const auto round = [&](Wide& a, Wide& b, Wide& c, Wide& d) {
    const Wide first = multiply_low(a, kMultiplier0), second = multiply_low(c, kMultiplier1);
    a = (second >> 32) ^ b ^ wide(key0);
    b = second;
    c = (first >> 32) ^ d ^ wide(key1);
    d = first;
  };
  Words(&w)[4] = block.word;
#pragma GCC unroll 10
  for (int i = 0; i < 10; ++i) {
    round(w[0].even, w[1].even, w[2].even, w[3].even);
    round(w[0].odd, w[1].odd, w[2].odd, w[3].odd);
    key0 += 0x9E3779B9; // the golden ratio
    key1 += 0xBB67AE85; // sqrt(3) - 1
  }
}

// The results of kWidth blocks with the counters (first + lane, counter1, counter2, counter3).
ALWAYS_INLINE Block philox(uint32_t first, uint32_t counter1, uint32_t counter2, uint32_t counter3, uint64_t key) {
  Block block;
  Wide lanes;
  for (int i = 0; i < kWidth / 2; ++i) {
    lanes[i] = first + 2 * static_cast<uint64_t>(i);
  }
  block.word[0] = {lanes, lanes + wide(1)};
  block.word[1] = {wide(counter1), wide(counter1)};
  block.word[2] = {wide(counter2), wide(counter2)};
  block.word[3] = {wide(counter3), wide(counter3)};
  philox_rounds(block, key);
  return block;
}

// Calls use(v, mask) for each vector v of a group of kGroup columns: lanes of the mask are all ones where the column is
// kept. `first` is the counter of the group's first column.
template <typename Use>
ALWAYS_INLINE void masks_of_group(uint32_t first, uint32_t counter1, uint32_t counter2, Stream stream, uint64_t key,
                                  uint32_t threshold, const Use& use) {
  constexpr int kParts = 16 / kWidth; // vectors that a run of 16 columns takes
  const Ints limit = ints(static_cast<int32_t>(threshold));
  for (int part = 0; part < kParts; ++part) {
    Block block = {};
    if (threshold < 65536) { // else all is kept
      block = philox(first + part * kWidth, counter1, counter2, stream, key);
    }
#pragma GCC unroll 4
    for (int w = 0; w < 4; ++w) {
      // Little endian: the lower half of a 64-bit lane is the even lane of 32 bits.
      const Wide even = block.word[w].even & wide(0xFFFFFFFF), odd = block.word[w].odd << 32;
      const Ints word = reinterpret_cast<Ints>(even | odd);
      use(w * kParts + part, (word & ints(0xFFFF)) < limit);
      use((4 + w) * kParts + part, reinterpret_cast<Ints>(reinterpret_cast<Unsigneds>(word) >> 16) < limit);
    }
  }
}

inline void philox_block(const uint32_t counter[4], const uint32_t key[2], uint32_t result[4]) {
  const Block block =
      philox(counter[0], counter[1], counter[2], counter[3], key[0] | static_cast<uint64_t>(key[1]) << 32);
  for (int w = 0; w < 4; ++w) {
    result[w] = static_cast<uint32_t>(block.word[w].even[0]);
  }
}
