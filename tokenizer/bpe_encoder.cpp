// GPT-2's byte-level BPE: splits UTF-8 text into words as GPT-2's regular expression does and merges their bytes.
//
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//
// Sennrich, Haddow and Birch 2016 (BPE); Radford et al. 2019 (bytes, and the expression). Called through ctypes by
// tokenizer/native.py, which sees to it that the text is valid UTF-8. Standard C++17, no other library.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <queue>
#include <vector>

namespace {

#include "unicode_classes.inc"

using Id = uint32_t;
constexpr Id NOTHING = 0xFFFFFFFF;

// Classes of characters

enum Class : uint8_t { OTHER, LETTER, NUMBER, SPACE };

struct Classes {
  std::vector<uint8_t> of = std::vector<uint8_t>(0x110000, OTHER); // by code point

  Classes() {
    fill(LETTERS, sizeof LETTERS / sizeof *LETTERS, LETTER);
    fill(NUMBERS, sizeof NUMBERS / sizeof *NUMBERS, NUMBER);
    fill(SPACES, sizeof SPACES / sizeof *SPACES, SPACE);
  }

  void fill(const uint32_t* runs, size_t length, Class value) {
    for (size_t i = 0; i < length; i += 2)
      std::fill(&of[runs[i]], &of[runs[i + 1]] + 1, value);
  }
};

const Classes& classes() {
  static const Classes instance;
  return instance;
}

struct Character {
  uint32_t length; // bytes; 0 at the end of the text
  Class kind;
};

Character at(const uint8_t* p, const uint8_t* end, const uint8_t* kinds) {
  if (p == end)
    return {0, OTHER};
  uint32_t first = *p;
  if (first < 0x80)
    return {1, Class(kinds[first])};
  uint32_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  if (p + length > end)
    return {1, OTHER}; // never in valid UTF-8; no byte past the end is looked at
  uint32_t code = first & (0x7F >> length);
  for (uint32_t i = 1; i < length; ++i)
    code = code << 6 | (p[i] & 0x3F);
  return {length, code < 0x110000 ? Class(kinds[code]) : OTHER};
}

// The length of 's, 't, 're, 've, 'm, 'll or 'd at p, which is an apostrophe; 0 if it is none of them.
size_t contraction(const uint8_t* p, const uint8_t* end) {
  if (end - p < 2)
    return 0;
  uint8_t a = p[1];
  if (a == 's' || a == 't' || a == 'm' || a == 'd')
    return 2;
  if (end - p < 3)
    return 0;
  uint8_t b = p[2];
  return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

// The end of the word that begins at p < end.
const uint8_t* word_end(const uint8_t* p, const uint8_t* end, const uint8_t* kinds) {
  if (*p == '\'') {
    if (size_t length = contraction(p, end))
      return p + length;
  }
  Character c = at(p, end, kinds);
  if (c.kind == SPACE) {
    Character next = at(p + c.length, end, kinds);
    if (next.length == 0)
      return end;
    if (next.kind == SPACE) {
      const uint8_t* last = p; // the last white space of the run
      do {
        last += c.length;
        c = next;
        next = at(last + c.length, end, kinds);
      } while (next.length != 0 && next.kind == SPACE);
      return next.length == 0 ? end : last; // \s+(?!\S): the last one is left for the word that follows
    }
    if (*p != ' ')
      return p + c.length;
    p += 1;
    c = next;
  }
  Class kind = c.kind;
  do {
    p += c.length;
    c = at(p, end, kinds);
  } while (c.length != 0 && c.kind == kind);
  return p;
}

// Merges

struct Merge {
  uint32_t rank; // the lower comes first; NOTHING: the pair is not merged
  Id id;
};

// Pair of ids to merge: open addressing, at most half full.
class MergeTable {
public:
  MergeTable(const int32_t* merges, int64_t count) {
    size_t size = 16;
    while (size < 2 * size_t(count))
      size *= 2;
    mask_ = size - 1;
    keys_.assign(size, EMPTY);
    values_.resize(size);
    for (int64_t rank = 0; rank < count; ++rank) {
      size_t slot = find(key(merges[3 * rank], merges[3 * rank + 1]));
      keys_[slot] = key(merges[3 * rank], merges[3 * rank + 1]);
      values_[slot] = {uint32_t(rank), Id(merges[3 * rank + 2])};
    }
  }

  Merge operator()(Id left, Id right) const {
    size_t slot = find(key(left, right));
    return keys_[slot] == EMPTY ? Merge{NOTHING, NOTHING} : values_[slot];
  }

private:
  static constexpr uint64_t EMPTY = ~uint64_t(0);
  static uint64_t key(Id left, Id right) {
    return uint64_t(left) << 32 | right;
  }

  size_t find(uint64_t key) const {
    size_t slot = (key * 0x9E3779B97F4A7C15u >> 32) & mask_;
    while (keys_[slot] != key && keys_[slot] != EMPTY)
      slot = (slot + 1) & mask_;
    return slot;
  }

  size_t mask_;
  std::vector<uint64_t> keys_;
  std::vector<Merge> values_;
};

// Encoding

// The ids of a word that was met before. One slot for each hash, the newest word stays.
struct Slot {
  static constexpr size_t WORD = 34, IDS = 7;
  uint8_t length = 0;
  uint8_t count = 0;
  uint8_t word[WORD];
  Id ids[IDS];
};

uint64_t hash(const uint8_t* p, size_t length) {
  uint64_t h = length * 0x9E3779B97F4A7C15u, part = 0;
  for (; length >= 8; p += 8, length -= 8) {
    std::memcpy(&part, p, 8);
    h = (h ^ part) * 0xBF58476D1CE4E5B9u;
    h ^= h >> 32;
  }
  part = 0;
  std::memcpy(&part, p, length);
  h = (h ^ part) * 0x94D049BB133111EBu;
  return h ^ h >> 32;
}

class Encoder {
public:
  Encoder(const int32_t* byte_ids, const int32_t* merges, int64_t count)
      : byte_ids_(byte_ids, byte_ids + 256), merges_(merges, count), cache_(size_t(1) << 17) {
  }

  // Writes the ids of a text to `out` and returns where they end. There are at most as many ids as bytes.
  Id* encode(const uint8_t* p, const uint8_t* end, Id* out) {
    const uint8_t* kinds = classes().of.data();
    while (p != end) {
      const uint8_t* stop = word_end(p, end, kinds);
      out = encode_word(p, stop - p, out);
      p = stop;
    }
    return out;
  }

private:
  Id* encode_word(const uint8_t* word, size_t length, Id* out) {
    if (length > Slot::WORD)
      return merge_long(word, length, out);
    Slot& slot = cache_[hash(word, length) & (cache_.size() - 1)];
    if (slot.length == length && std::memcmp(slot.word, word, length) == 0) {
      std::memcpy(out, slot.ids, slot.count * sizeof(Id));
      return out + slot.count;
    }
    Id* stop = merge_short(word, length, out);
    size_t count = stop - out;
    if (count <= Slot::IDS) {
      slot.length = uint8_t(length);
      slot.count = uint8_t(count);
      std::memcpy(slot.word, word, length);
      std::memcpy(slot.ids, out, count * sizeof(Id));
    }
    return stop;
  }

  // Merge the pair of lowest rank, the leftmost of equals, until there is none: quadratic, for short words.
  Id* merge_short(const uint8_t* word, size_t length, Id* out) {
    Merge found[Slot::WORD]; // of each id and the next
    for (size_t i = 0; i < length; ++i)
      out[i] = byte_ids_[word[i]];
    for (size_t i = 0; i + 1 < length; ++i)
      found[i] = merges_(out[i], out[i + 1]);
    while (length > 1) {
      size_t best = 0;
      for (size_t i = 1; i + 1 < length; ++i) {
        if (found[i].rank < found[best].rank)
          best = i;
      }
      if (found[best].rank == NOTHING)
        break;
      out[best] = found[best].id;
      --length;
      for (size_t i = best + 1; i < length; ++i)
        out[i] = out[i + 1];
      for (size_t i = best + 1; i + 1 < length; ++i)
        found[i] = found[i + 1];
      if (best + 1 < length)
        found[best] = merges_(out[best], out[best + 1]);
      if (best > 0)
        found[best - 1] = merges_(out[best - 1], out[best]);
    }
    return out + length;
  }

  // The same with a heap and linked ids, n log n: text without white space must not take forever.
  Id* merge_long(const uint8_t* word, size_t length, Id* out) {
    struct Candidate {
      uint32_t rank;
      size_t left;
      Id left_id, right_id;
      bool operator<(const Candidate& other) const {
        return rank != other.rank ? rank > other.rank : left > other.left;
      }
    };
    std::vector<size_t> next(length), previous(length);
    std::vector<Id> ids(length);
    std::priority_queue<Candidate> heap;
    auto push = [&](size_t left) {
      size_t right = next[left];
      if (right == length)
        return;
      Merge merge = merges_(ids[left], ids[right]);
      if (merge.rank != NOTHING)
        heap.push({merge.rank, left, ids[left], ids[right]});
    };
    for (size_t i = 0; i < length; ++i) {
      ids[i] = byte_ids_[word[i]];
      next[i] = i + 1;
      previous[i] = i == 0 ? length : i - 1;
    }
    for (size_t i = 0; i < length; ++i)
      push(i);
    while (!heap.empty()) {
      Candidate top = heap.top();
      heap.pop();
      size_t left = top.left, right = next[left];
      // Entries of ids that have been merged away since are left in the heap.
      if (ids[left] != top.left_id || right == length || ids[right] != top.right_id)
        continue;
      ids[left] = merges_(ids[left], ids[right]).id;
      ids[right] = NOTHING;
      next[left] = next[right];
      if (next[left] != length)
        previous[next[left]] = left;
      push(left);
      if (previous[left] != length)
        push(previous[left]);
    }
    for (size_t i = 0; i != length; i = next[i])
      *out++ = ids[i];
    return out;
  }

  std::vector<Id> byte_ids_;
  MergeTable merges_;
  std::vector<Slot> cache_;
};

} // namespace

extern "C" {

// byte_ids: the id of each byte, (256,). merges: left id, right id, merged id, (count, 3), the first merge first.
void* bpe_new(const int32_t* byte_ids, const int32_t* merges, int64_t count) {
  return new Encoder(byte_ids, merges, count);
}

void bpe_delete(void* encoder) {
  delete static_cast<Encoder*>(encoder);
}

// Encodes documents that stand one after the other in `text`; document d ends at byte ends[d]. Each is followed by
// the id `last` unless that is negative. `ids` has room for as many ids as there are bytes and documents; counts[d]
// becomes the number of ids of document d. Returns the number of all. Not to be called twice at the same time.
int64_t bpe_encode(void* encoder, const char* text, const int64_t* ends, int64_t documents, int64_t last, uint32_t* ids,
                   int64_t* counts) {
  const uint8_t* begin = reinterpret_cast<const uint8_t*>(text);
  Id* out = ids;
  for (int64_t d = 0; d < documents; ++d) {
    Id* first = out;
    out = static_cast<Encoder*>(encoder)->encode(begin + (d == 0 ? 0 : ends[d - 1]), begin + ends[d], out);
    if (last >= 0)
      *out++ = Id(last);
    counts[d] = out - first;
  }
  return out - ids;
}
}
