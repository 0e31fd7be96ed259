// The inner loops of the order of samples over a memory-mapped corpus, and of reading them. Called through ctypes by
// data/megatron/native.py; data/megatron/order.py and data/megatron/dataset.py say what they compute and do the same
// with numpy where this is not built. Standard C++17, no other library; x86 and ARM alike, little-endian.

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace {

constexpr int STATE = 624; // words of the Mersenne twister (Matsumoto and Nishimura 1998), MT19937
constexpr int AHEAD = 32;  // how far ahead memory is asked for: its latency is some 30 steps

// The generator of numpy.random.RandomState, at the state that its get_state() gives.
class Generator {
public:
  Generator(uint32_t* key, int32_t position) : key_(key), position_(position) {
  }

  int32_t position() const {
    return position_;
  }

  uint32_t next() {
    if (position_ == STATE)
      renew();
    uint32_t y = key_[position_++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
  }

private:
  void renew() {
    for (int i = 0; i < STATE; ++i) {
      uint32_t y = (key_[i] & 0x80000000u) | (key_[(i + 1) % STATE] & 0x7fffffffu);
      key_[i] = key_[(i + 397) % STATE] ^ (y >> 1) ^ (-(y & 1) & 0x9908b0dfu);
    }
    position_ = 0;
  }

  uint32_t* key_;
  int32_t position_;
};

// Fisher and Yates from the end, as RandomState.shuffle: position i changes with a random one of 0..i, which are the
// low bits of 32 random ones, drawn again while they exceed i.
template <typename Value> void shuffle(Generator& random, Value* values, int64_t count) {
  uint32_t mask = 0xffffffffu, others[AHEAD];
  for (int64_t i = count - 1; i > 0;) {
    int64_t drawn = i < AHEAD ? i : AHEAD;
    for (int64_t k = 0; k < drawn; ++k) {
      uint32_t last = uint32_t(i - k);
      while ((mask >> 1) >= last)
        mask >>= 1;
      do
        others[k] = random.next() & mask;
      while (others[k] > last);
      __builtin_prefetch(&values[others[k]], 1);
    }
    for (int64_t k = 0; k < drawn; ++k, --i)
      std::swap(values[i], values[others[k]]);
  }
}

template <typename Number> Number load(const void* array, int64_t at) { // the .idx aligns nothing
  Number value;
  std::memcpy(&value, static_cast<const char*>(array) + at * int64_t(sizeof(Number)), sizeof value);
  return value;
}

template <typename Position>
int64_t sample_index(const void* sizes, const int32_t* documents, int64_t positions, int64_t max_len, int64_t entries,
                     Position* index) {
  int64_t begin = 0, wanted = 0, entry = 0;
  for (int64_t p = 0; p < positions; ++p) {
    if (p + AHEAD < positions)
      __builtin_prefetch(static_cast<const int32_t*>(sizes) + documents[p + AHEAD]);
    int64_t end = begin + load<int32_t>(sizes, documents[p]);
    for (; wanted < end && entry < entries; ++entry, wanted += max_len) {
      index[2 * entry] = Position(p);
      index[2 * entry + 1] = Position(wanted - begin);
    }
    begin = end;
  }
  if (entry > 0) // Megatron-LM's first entry does not skip empty documents; every later one does
    index[0] = index[1] = 0;
  return entry;
}

struct Corpus {
  const void* tokens;
  int64_t token_count;
  const void *sizes, *pointers; // int32 in tokens, int64 in bytes
  int64_t document_count;
};

template <typename Token>
int64_t read(const Corpus& corpus, const int32_t* documents, int64_t positions, const int64_t* begins, int64_t rows,
             int64_t length, int64_t vocabulary, int32_t* ids) {
  using Unsigned = std::conditional_t<sizeof(Token) == 8, uint64_t, uint32_t>;
  using Signed = std::conditional_t<sizeof(Token) == 8, int64_t, int32_t>;
  const Unsigned limit = Unsigned(vocabulary);
  const Token* tokens = static_cast<const Token*>(corpus.tokens);
  uint32_t outside = 0;
  for (int64_t row = 0; row < rows; ++row) {
    int64_t position = begins[2 * row], offset = begins[2 * row + 1];
    for (int64_t left = length; left > 0; ++position, offset = 0) {
      if (position < 0 || position >= positions)
        return -1;
      if (position + 4 < positions) { // documents lie anywhere: ask for their entries, then for their tokens
        __builtin_prefetch(static_cast<const char*>(corpus.sizes) + 4 * int64_t(documents[position + 4]));
        __builtin_prefetch(static_cast<const char*>(corpus.pointers) + 8 * int64_t(documents[position + 4]));
        int64_t soon = documents[position + 2];
        if (soon >= 0 && soon < corpus.document_count)
          __builtin_prefetch(static_cast<const char*>(corpus.tokens) + load<int64_t>(corpus.pointers, soon));
      }
      int64_t document = documents[position];
      if (document < 0 || document >= corpus.document_count)
        return -1;
      int64_t size = load<int32_t>(corpus.sizes, document) - offset;
      if (size <= 0)
        continue;
      int64_t start = load<int64_t>(corpus.pointers, document) / int64_t(sizeof(Token)) + offset;
      int64_t taken = size < left ? size : left;
      if (offset < 0 || start < 0 || start + taken > corpus.token_count)
        return -1;
      const Token* source = tokens + start;
      for (int64_t k = 0; k < taken; ++k) {
        Signed id = Signed(source[k]);
        ids[k] = int32_t(id);
        outside |= Unsigned(id) >= limit;
      }
      ids += taken;
      left -= taken;
    }
  }
  return outside ? -1 : 0;
}

} // namespace

extern "C" {

// Shuffles `count` < 2^32 values of `width` 4 or 8 bytes; `key` (624,) advances, the new position in it is returned.
int32_t megatron_shuffle(uint32_t* key, int32_t position, void* values, int64_t count, int32_t width) {
  Generator random(key, position);
  if (width == 4)
    shuffle(random, static_cast<uint32_t*>(values), count);
  else
    shuffle(random, static_cast<uint64_t*>(values), count);
  return random.position();
}

// Entries i = 0 ... `entries` - 1 of the sample index: position and offset, `width` bytes each, of token i `max_len`.
// Returns how many there are.
int64_t megatron_sample_index(const void* sizes, const int32_t* documents, int64_t positions, int64_t max_len,
                              int64_t entries, void* index, int32_t width) {
  if (width == 4)
    return sample_index(sizes, documents, positions, max_len, entries, static_cast<int32_t*>(index));
  return sample_index(sizes, documents, positions, max_len, entries, static_cast<int64_t*>(index));
}

// Reads `length` tokens from each of `rows` begins (position, offset) on; `code` is the type's number in the .idx.
// Returns 0, or -1 if an id is not in 0 ... `vocabulary` - 1 or the arrays point outside.
int64_t megatron_read(const void* tokens, int64_t token_count, int32_t code, const void* sizes, const void* pointers,
                      int64_t document_count, const int32_t* documents, int64_t positions, const int64_t* begins,
                      int64_t rows, int64_t length, int64_t vocabulary, int32_t* ids) {
  const Corpus corpus = {tokens, token_count, sizes, pointers, document_count};
  auto with = [&](auto token) {
    return read<decltype(token)>(corpus, documents, positions, begins, rows, length, vocabulary, ids);
  };
  switch (code) {
  case 1:
    return with(uint8_t());
  case 2:
    return with(int8_t());
  case 3:
    return with(int16_t());
  case 4:
    return with(int32_t());
  case 5:
    return with(int64_t());
  case 8:
    return with(uint16_t());
  default:
    return -1;
  }
}

} // extern "C"
