// Dropout inside attention and inside the residual sum, GELU with its bias, cross-entropy, and Adam: what the kernels
// are given, and which there are.
//
// No mask is stored. Whether an element is kept follows from its place and a key by Philox 4x32-10 (Salmon, Moraes,
// Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011), so that the backward pass, a recomputation and
// any number of threads find the same mask on every processor.
//
// The contract. A block of Philox has a counter of four words, a key of two and four words of result, which decide on
// eight elements by 16 bits each: kept are those below `threshold` of 65536. An element in column j (of a row of
// scores, or of a flat tensor) is decided on by the block
//     counter[0] + 2^32 counter[1] (flat tensors) or counter[0] (scores) = 16 (j / 128) + j % 16
// in its word (j / 16) % 4, by the lower half where j % 128 < 64 and by the upper one otherwise. For scores counter[1]
// is the row and counter[2] = sample * heads + head. counter[3] is the Stream. With 16 lanes, or two times 8, a group
// of 128 columns is then in the order of the columns without a shuffle.
#pragma once

#include <cstdint>

namespace poptorch_kernels {

constexpr int64_t kVersion = 12; // of the structures and of the random numbers: who calls takes a library of its own

enum Stream : uint32_t { kScores = 0, kFlat = 1 };
constexpr int64_t kGroup = 128; // columns that one vector of blocks decides on

// A tensor (batch, heads, rows, width) whose last dimension is contiguous; strides in elements.
struct View {
  void* data;
  int64_t batch, head, row;
};

// Causal attention with dropout. The fields are those of the ctypes.Structure in __init__.py. What is added to the
// score of query i and key j is ALiBi's slope times (j - i), and a bias of the key.
struct Attention {
  View query, key, value, out; // (B, H, T, D), (B, H, T, D), (B, H, T, E), (B, H, T, E)
  View grad_out, grad_query, grad_key, grad_value;
  float* log_sums;      // (B, H, T): log2 of the sums of exponentials of the scores
  float* scratch;       // scratch_size() elements for each thread
  const uint64_t* keys; // one for each `samples_per_key` samples, which are numbered from 0 on for each key
  const float* slopes;  // (H,) or null
  const float* bias;    // (biases, T) or null: a row for each `samples_per_bias` samples
  float* grad_bias;     // (B, H, T) or null: each head's gradient of the bias of its sample
  int64_t samples_per_key, samples_per_bias;
  int64_t batch, heads, length, width, value_width; // B, H, T, D, E
  float scale;                                      // of the scores
  uint32_t threshold;                               // of 65536
  bool narrow;                                      // the tensors are of bfloat16, else of float32
};

// out = residual + dropout(x), or without residual; of `count` elements.
struct Residual {
  const float *x, *residual;
  float* out;
  uint64_t key;
  int64_t count;
  uint32_t threshold;
};

// out = gelu(x + bias); with `grad`, which is that of this, out = x's gradient. Without a bias it is null.
struct Gelu {
  const void *x, *grad;      // (rows, width)
  const float* bias;         // (width,)
  void* out;                 // (rows, width)
  float* sums;               // (ceil(rows / part), width): scratch memory, where there are a bias and `grad`
  float* grad_bias;          // (width,), likewise
  int64_t rows, width, part; // `part` rows are worked on together: what is added up does not depend on threads
  bool by_tanh;              // else by erf, GELU itself
  bool narrow;               // x, grad and out are of bfloat16, else of float32
};

constexpr int64_t kPartStep = 64; // columns

// loss = log(sum of exp(x)) - x[target] for each row x = logits + bias, and the place of its first largest x. With
// `gradient` exp(x - the largest), of the target's one less their sum, takes the logits' place: times the row's
// factor that is the loss's gradient. As bfloat16 (`narrow`) it takes the first half of the row's memory. Where it goes
// elsewhere it may be cut into parts of columns, which lie one after the other.
struct CrossEntropy {
  float* logits;         // (rows, columns)
  const float* bias;     // (columns,) or null
  const int64_t* target; // (rows,)
  float* losses;         // (rows,)
  int64_t* best;         // (rows,)
  float* factors;        // (rows,): with `gradient` only
  void* gradient;        // of float32 or (`narrow`) bfloat16, perhaps over the logits; or null
  int64_t rows, columns, stride;
  int64_t part;                         // columns of one of the gradient's parts: all, or a multiple of kPartStep
  int64_t gradient_stride, part_stride; // elements between a part's rows, and between parts
  bool narrow;
};

// Float32, or bfloat16 (`narrow`): element (i, k) lies at data[i * row + k * column], and one of the strides is 1.
struct Matrix {
  const void* data;
  int64_t row, column;
  bool narrow;
};

// out (rows, columns) = left (rows, depth) right (depth, columns), added to what is there if `add`. The operands are
// rounded to bfloat16 unless the products are float32_products(), which take no others than of float32. The sums are of
// float32; their order does not depend on the number of threads, nor, unless the depth is cut (entry.cpp), on the
// number of rows.
struct Product {
  Matrix left, right;
  float* out;
  int64_t out_row; // stride
  int64_t rows, columns, depth;
  bool add;
  void* packed;  // memory for a part of the left operand, of poptorch_product_memory()
  void* scratch; // for a panel of the right one for each thread, likewise
};

// What is multiplied at a time: rows from `row` on, and `depth` elements of each from `start` on.
struct Part {
  int64_t row, start, depth;
  int64_t ahead; // so many columns further on is what a thread multiplies next, by guess; 0: nobody knows
};

// Products on a processor with instructions for them.
struct Products {
  int64_t rows, columns;                 // of a tile
  int64_t part_rows, part_depth;         // of a Part at most
  int64_t panel_bytes;                   // of scratch memory for each thread
  int64_t (*left_bytes)(const Product&); // of Product::packed
  // Rows `first` ... `last` - 1 of the part, into Product::packed; multiples of `rows`, or the end.
  void (*pack_left)(const Product&, const Part&, int64_t first, int64_t last);
  // The same rows by `columns` columns from `column` on.
  void (*multiply)(const Product&, const Part&, int64_t first, int64_t last, int64_t column, void* scratch);
};

enum Type : int32_t { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2 };

// Neighbouring elements of one parameter and what belongs to them, of the types that Adam says.
struct AdamPiece {
  void* weight;
  const void* gradient;
  void *first, *second; // moments
  void* rounded;        // the weight again, of type `rounded_type`: only written. Or null
  // Not null: there is no `weight`. In its place, of float32, there are `rounded`, of bfloat16, and the whole number
  // that its bits are larger by than those of `rounded` with 16 zeros after them.
  int16_t* remainder;
  int64_t count;
  Type rounded_type;
};

struct AdamTypes {
  Type weight, gradient, first, second;
};

// g = gradient / divisor + added_decay weight;  m += weight1 (g - m);  v = beta2 v + weight2 g^2;
// weight = kept weight - rate m / (sqrt(v) + eps), where rate and eps hold the corrections of the moments' bias.
struct Adam {
  const AdamPiece* pieces;
  int64_t number; // of pieces
  AdamTypes types;
  float divisor, added_decay, kept, weight1, beta2, weight2, eps, rate;
};

// One implementation for each kind of processor. Arithmetic is that of float32 whatever tensors are of, but that
// avx512_bf16_kernels() round the operands of attention's products to bfloat16 where the tensors are of that.
struct Kernels {
  const char* name;
  // Elements of scratch memory that a thread needs.
  int64_t (*scratch_size)(const Attention&, bool backward);
  // All of one head of one sample.
  void (*forward)(const Attention&, int64_t sample, int64_t head, float* scratch);
  void (*backward)(const Attention&, int64_t sample, int64_t head, float* scratch);
  // Elements `first` ... `last` - 1; `first` is a multiple of kGroup.
  void (*residual)(const Residual&, int64_t first, int64_t last);
  // Rows `first` ... `last` - 1; `first` is a multiple of Gelu::part, and there are no more than that.
  void (*gelu)(const Gelu&, int64_t first, int64_t last);
  // One row.
  void (*cross_entropy)(const CrossEntropy&, int64_t row);
  // Elements `first` ... `last` - 1 of a piece.
  void (*adam)(const Adam&, const AdamPiece&, int64_t first, int64_t last);
  // (counter, key) -> result, for tests.
  void (*philox)(const uint32_t counter[4], const uint32_t key[2], uint32_t result[4]);
};

extern const Kernels portable_kernels;
const Kernels* avx2_kernels();        // null where they cannot run
const Kernels* avx512_kernels();      // null where they cannot run
const Kernels* avx512_bf16_kernels(); // null where they cannot run
const Products* bfloat16_products();  // null where they cannot run
const Products* float32_products();   // null where they cannot run

} // namespace poptorch_kernels
