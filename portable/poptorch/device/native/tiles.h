// Products by tiles of registers, and packed operands for them. Included after vectors.h, in the same namespace; kRows
// is the including file's own.
//
// Operands are packed first: `rows` hold one row after the other, `panels` hold kPanel columns of all rows after each
// other, as the inner loop reads them. What they consist of is up to a type, Operands below, as Singles is one:
//     Number                     the type of an operand's elements, 32 bits of which are multiplied at a time
//     kScaled                    whether packing takes a factor
//     spread(at), lanes(at)      the 32 bits at `at` in all lanes; kWidth times 32 bits
//     added(sum, left, right)    sum + left right in float32, lane by lane
//     store(to, x)               a vector of float32 becomes elements of an operand
//     pack_rows(), pack_panels(), pack_transposed(), by_columns()

constexpr int64_t kPanel = 2 * kWidth; // columns

// Numbers that follow each other along the depth of a product and lie side by side.
template <typename Operands> constexpr int64_t kTogether = 4 / sizeof(typename Operands::Number);

inline int64_t whole(int64_t count, int64_t unit) {
  return (count + unit - 1) / unit * unit;
}

// A depth with the zeros that fill it up.
template <typename Operands> int64_t deep(int64_t depth) {
  return whole(depth, kTogether<Operands>);
}

// An operand that is read 32 bits at a time: those of row i from the k-th number on lie at
// data[i * row + k / kTogether * column].
template <typename Operands> struct Left {
  const typename Operands::Number* data;
  int64_t row, column;
};

// Rows of `width` numbers as they lie in memory.
template <typename Operands> Left<Operands> by_rows(const typename Operands::Number* rows, int64_t width) {
  return {rows, width, kTogether<Operands>};
}

// out[i][n] (+)= sum over k of left(i, k) * panel[k][n], for M rows and N vectors.
template <typename Operands, int M, int N, bool Add>
ALWAYS_INLINE void micro(Left<Operands> left, const typename Operands::Number* panel, int64_t depth, float* out,
                         int64_t out_row) {
  Floats sum[M][N];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      sum[i][n] = Add ? load(out + i * out_row + n * kWidth) : floats(0.0f);
    }
  }
  const int64_t steps = (depth + kTogether<Operands> - 1) / kTogether<Operands>;
  for (int64_t k = 0; k < steps; ++k) {
    Floats right[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      right[n] = Operands::lanes(panel + (k * kPanel + n * kWidth) * kTogether<Operands>);
    }
    const typename Operands::Number* column = left.data + k * left.column;
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      const Floats one = Operands::spread(column + i * left.row);
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        sum[i][n] = Operands::added(sum[i][n], one, right[n]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      store(out + i * out_row + n * kWidth, sum[i][n]);
    }
  }
}

template <typename Operands, int N, bool Add>
void column_of_tiles(Left<Operands> left, int64_t rows, const typename Operands::Number* panel, int64_t depth,
                     float* out, int64_t out_row) {
  const auto from = [&](int64_t i) { return Left<Operands>{left.data + i * left.row, left.row, left.column}; };
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows) {
    micro<Operands, kRows, N, Add>(from(i), panel, depth, out + i * out_row, out_row);
  }
  for (; i + 2 <= rows; i += 2) {
    micro<Operands, 2, N, Add>(from(i), panel, depth, out + i * out_row, out_row);
  }
  for (; i < rows; ++i) {
    micro<Operands, 1, N, Add>(from(i), panel, depth, out + i * out_row, out_row);
  }
}

// out (rows, columns) (+)= left (rows, depth) times panels (depth, columns), which lie `panel_size` numbers apart.
template <bool Add, typename Operands>
void product(Left<Operands> left, int64_t rows, const typename Operands::Number* panels, int64_t panel_size,
             int64_t depth, int64_t columns, float* out, int64_t out_row) {
  for (int64_t n = 0; n < columns; n += kPanel, panels += panel_size) {
    if (columns - n > kWidth) {
      column_of_tiles<Operands, 2, Add>(left, rows, panels, depth, out + n, out_row);
    } else {
      column_of_tiles<Operands, 1, Add>(left, rows, panels, depth, out + n, out_row);
    }
  }
}

// Operands of float32.
struct Singles {
  using Number = float;
  static constexpr bool kScaled = true;

  static ALWAYS_INLINE Floats spread(const float* at) {
    return floats(*at);
  }
  static ALWAYS_INLINE Floats lanes(const float* at) {
    return load(at);
  }
  static ALWAYS_INLINE Floats added(Floats sum, Floats left, Floats right) {
    return sum + left * right;
  }
  static ALWAYS_INLINE void store(float* to, Floats x) {
    *reinterpret_cast<FloatsAnywhere*>(to) = x;
  }

  // (rows, width) times `factor`, one row after the other.
  template <typename Element>
  static void pack_rows(const Element* from, int64_t stride, int64_t rows, int64_t width, float* to,
                        float factor = 1.0f) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t d = 0; d < width; ++d) {
        to[i * width + d] = as_float(from[i * stride + d]) * factor;
      }
    }
  }

  // (rows, width) as panels of columns: (width / kPanel, rows, kPanel), with zeros after the last column.
  template <typename Element>
  static void pack_panels(const Element* from, int64_t stride, int64_t rows, int64_t width, float* to,
                          float factor = 1.0f) {
    for (int64_t d = 0; d < width; d += kPanel) {
      const int64_t count = std::min(kPanel, width - d);
      for (int64_t i = 0; i < rows; ++i, to += kPanel) {
        for (int64_t n = 0; n < count; ++n) {
          to[n] = as_float(from[i * stride + d + n]) * factor;
        }
        for (int64_t n = count; n < kPanel; ++n) {
          to[n] = 0.0f;
        }
      }
    }
  }

  // (rows, width) transposed as panels: (rows / kPanel, width, kPanel), with zeros after the last row.
  template <typename Element>
  static void pack_transposed(const Element* from, int64_t stride, int64_t rows, int64_t width, float* to) {
    for (int64_t i = 0; i < rows; i += kPanel, to += width * kPanel) {
      const int64_t count = std::min(kPanel, rows - i);
      for (int64_t n = 0; n < count; ++n) {
        for (int64_t d = 0; d < width; ++d) {
          to[d * kPanel + n] = as_float(from[(i + n) * stride + d]);
        }
      }
      for (int64_t n = count; n < kPanel; ++n) {
        for (int64_t d = 0; d < width; ++d) {
          to[d * kPanel + n] = 0.0f;
        }
      }
    }
  }

  // Rows of `row` numbers each can be read along their columns where they are.
  static Left<Singles> by_columns(const float* rows, int64_t row, int64_t, int64_t, float*) {
    return {rows, 1, row};
  }
};
