// EmbedTokens, DecodeBlocks and NextLogits: GPT-2's embedding, its blocks over a static key/value cache, its head.
// decode_blocks.py says what they mean. On a CPU up to few_rows::kMaxRows tokens go through the kernels of
// few_rows_kernels.h, which are as fast as the weights can be read; more of them (a long prompt), and everything on a
// CUDA device, through torch's matrix products, or on a CPU those of runtime_kernels.h: of float16 weights there in the
// type of half_products.h.

#include "decode_step.h"
#include "half_products.h"
#include "runtime_kernels.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <map>

#include <sys/mman.h>

namespace {

using at::Tensor;
using few_rows::Activation;
using few_rows::BlockForm;
using few_rows::Layer;
using few_rows::Matrix;
using few_rows::Precision;
using few_rows::Token;

// Asks for 2 MiB pages, once for each buffer: reading weights then misses the page cache 512 times less often.
void use_large_pages(const Tensor& weights) {
#if defined(__linux__)
  static std::mutex guard;
  static std::map<const void*, int64_t> known;
  constexpr uintptr_t page = uintptr_t{2} << 20;
  constexpr int collapse = 25; // MADV_COLLAPSE, Linux 6.1; where it is unknown the kernel says so, without harm
  const void* data = weights.data_ptr();
  std::lock_guard<std::mutex> lock(guard);
  if (weights.nbytes() < 2 * page || known[data] == static_cast<int64_t>(weights.nbytes())) {
    return;
  }
  known[data] = weights.nbytes();
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + weights.nbytes()) / page * page;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  madvise(reinterpret_cast<void*>(first), last - first, collapse);
#endif
}

Precision precision_of(int64_t precision) {
  TORCH_CHECK_VALUE(0 <= precision && precision <= 2, "precision must be 0, 1 or 2, not ", precision);
  return static_cast<Precision>(precision);
}

Activation activation_of(const std::string& name) {
  static const std::map<std::string, Activation> known = {
      {"gelu", Activation::Gelu}, {"gelu_new", Activation::GeluTanh}, {"relu", Activation::Relu}};
  const auto found = known.find(name);
  TORCH_CHECK_VALUE(found != known.end(), "activation must be gelu, gelu_new or relu, not ", name);
  return found->second;
}

void check_packed(const Tensor& weights, int64_t expected) {
  TORCH_CHECK_VALUE(weights.scalar_type() == at::kByte && weights.is_contiguous() && weights.numel() == expected,
                    "weights: expected ", expected, " packed bytes, got ", weights.numel());
}

void check_width(int64_t k, Precision precision) {
  TORCH_CHECK_VALUE(precision != Precision::Int8 || k % few_rows::kGroup == 0, "int8 weights need sizes that ",
                    few_rows::kGroup, " divides, not ", k);
}

// A tensor over a part of a packed buffer.
Tensor part_of(const void* data, at::IntArrayRef sizes, at::ScalarType type, at::Device device) {
  return at::from_blob(const_cast<void*>(data), sizes, at::TensorOptions().dtype(type).device(device));
}

// The matrix as float32, for torch's products.
Tensor as_float(const Matrix& matrix, at::Device device) {
  if (matrix.precision == Precision::Float32) {
    return part_of(matrix.data, {matrix.n, matrix.k}, at::kFloat, device);
  }
  if (matrix.precision == Precision::Float16) {
    return part_of(matrix.data, {matrix.n, matrix.k}, at::kHalf, device).to(at::kFloat);
  }
  const int64_t groups = matrix.k / few_rows::kGroup;
  const Tensor whole = part_of(matrix.data, {matrix.n, groups, few_rows::kGroup}, at::kChar, device).to(at::kFloat);
  const Tensor scales = part_of(matrix.scales, {matrix.n, groups, 1}, at::kHalf, device);
  return whole.mul_(scales.to(at::kFloat)).view({matrix.n, matrix.k});
}

// The type of torch's products with the matrix.
at::ScalarType type_of_products(const Matrix& matrix, at::Device device) {
  const bool narrow = matrix.precision == Precision::Float16 && device.is_cpu() && half_products::in_bfloat16();
  return narrow ? at::kBFloat16 : at::kFloat;
}

// x W^T + b for x (tokens, K), in the type of the products, whose sums are of float32.
Tensor linear(const Tensor& x, const Matrix& matrix, const float* bias) {
  const at::ScalarType type = type_of_products(matrix, x.device());
  const Tensor weight = type == at::kFloat
                            ? as_float(matrix, x.device())
                            : half_products::rounded(part_of(matrix.data, {matrix.n, matrix.k}, at::kHalf, x.device()));
  const Tensor added = part_of(bias, {matrix.n}, at::kFloat, x.device());
  if (type == at::kFloat && x.is_cpu() && runtime_kernels::multiplies()) {
    return runtime_kernels::multiply(x.to(type).contiguous(), weight.t(), added);
  }
  return at::addmm(added.to(type), x.to(type), weight.t());
}

// What ALiBi adds to the scores of the queries from place `start` on and keys 0 to seen - 1: (1, H, queries, keys),
// -inf behind the query.
Tensor alibi_bias(const std::vector<float>& slopes, int64_t start, int64_t seen, const at::TensorOptions& options) {
  const Tensor distance = at::arange(seen, options).unsqueeze(0) - at::arange(start, seen, options).unsqueeze(1);
  const Tensor of_heads = at::tensor(slopes, at::kFloat).to(options.device()).view({1, -1, 1, 1});
  return (distance * of_heads).masked_fill_(distance.gt(0), -std::numeric_limits<float>::infinity());
}

// Many tokens through one block. x: (tokens, C); keys, values: (B, H, S, D) of this layer.
Tensor many_rows(const Layer& layer, const Tensor& x, const std::vector<Token>& tokens, const Tensor& keys,
                 const Tensor& values, const BlockForm& form) {
  const int64_t width = x.size(1), heads = keys.size(1);
  const auto vector_of = [&](const float* data, int64_t size) { return part_of(data, {size}, at::kFloat, x.device()); };
  const auto norm = [&](const Tensor& input, const float* weight, const float* bias) {
    return at::layer_norm(input, {width}, vector_of(weight, width), vector_of(bias, width), form.epsilon);
  };
  const Tensor first_normed = norm(x, layer.norm_1, layer.norm_1_bias);
  const Tensor projected = linear(first_normed, layer.attention_in, layer.attention_in_bias);
  const std::vector<Tensor> parts = projected.split(width, 1);
  // Distances in bfloat16 would be wrong from 257 on.
  const at::ScalarType type = form.slopes.empty() ? projected.scalar_type() : at::kFloat;
  Tensor context = at::empty_like(x, projected.options());
  for (size_t first = 0, last = 0; first < tokens.size(); first = last) {
    const int64_t batch = tokens[first].batch, start = tokens[first].position;
    while (last < tokens.size() && tokens[last].batch == batch) {
      ++last;
    }
    const int64_t count = last - first, seen = start + count;
    const auto heads_of = [&](const Tensor& part) { // -> (1, H, count, D)
      return part.slice(0, first, last).view({1, count, heads, width / heads}).transpose(1, 2);
    };
    keys[batch].slice(1, start, seen).copy_(heads_of(parts[1])[0]);
    values[batch].slice(1, start, seen).copy_(heads_of(parts[2])[0]);
    // What has just gone into the cache is there, too: bfloat16 loses nothing in float16 but what is out of its range.
    const bool fresh = start == 0 && type == at::kBFloat16;
    const auto all_of = [&](const Tensor& cache, const Tensor& part) { // -> (1, H, seen, D)
      return fresh ? heads_of(part) : cache[batch].slice(1, 0, seen).unsqueeze(0).to(type);
    };
    const Tensor query = heads_of(parts[0]).to(type), key = all_of(keys, parts[1]), value = all_of(values, parts[2]);
    const Tensor found = context.slice(0, first, last).view({1, count, heads, width / heads}).transpose(1, 2);
    if (start == 0 && form.slopes.empty() && runtime_kernels::has_attention(type, x.device())) {
      runtime_kernels::attention(query[0], key[0], value[0], found[0]);
      continue;
    }
    std::optional<Tensor> visible;
    if (!form.slopes.empty()) {
      visible = alibi_bias(form.slopes, start, seen, x.options());
    } else if (start > 0) {
      visible = at::ones({count, seen}, x.options().dtype(at::kBool)).tril_(start);
    }
    found.copy_(at::scaled_dot_product_attention(query, key, value, visible, 0.0, !visible.has_value()));
  }
  const Tensor middle = x + linear(context, layer.attention_out, layer.attention_out_bias);
  const Tensor read = form.parallel ? first_normed : norm(middle, layer.norm_2, layer.norm_2_bias);
  Tensor active = linear(read, layer.mlp_in, layer.mlp_in_bias);
  active = form.activation == Activation::Relu
               ? active.relu_()
               : at::gelu_(active, form.activation == Activation::Gelu ? "none" : "tanh");
  return middle + linear(active, layer.mlp_out, layer.mlp_out_bias);
}

// The whole numbers of a tensor. On a CPU what a dozen of torch's operators would do for a token is done here by hand:
// after a step has read all weights their code is in no cache any more, and each takes microseconds.
std::vector<int64_t> numbers(const Tensor& tensor) {
  const Tensor here = tensor.is_cpu() && tensor.is_contiguous() ? tensor : tensor.to(at::kCPU).contiguous();
  if (here.scalar_type() == at::kInt) {
    const int32_t* data = here.data_ptr<int32_t>();
    return {data, data + here.numel()};
  }
  const Tensor wide = here.to(at::kLong);
  const int64_t* data = wide.data_ptr<int64_t>();
  return {data, data + wide.numel()};
}

Tensor to_device(const std::vector<int64_t>& numbers, at::Device device) {
  return at::tensor(numbers, at::kLong).to(device);
}

// Rows `places` of (rows, C), of float32: a new tensor.
Tensor rows_at(const Tensor& all, const std::vector<int64_t>& places) {
  if (!all.is_cpu() || !all.is_contiguous()) {
    return all.index_select(0, to_device(places, all.device()));
  }
  const int64_t width = all.size(1), count = places.size();
  const Tensor found = at::empty({count, width}, all.options());
  for (int64_t row = 0; row < count; ++row) {
    std::copy_n(all.data_ptr<float>() + places[row] * width, width, found.data_ptr<float>() + row * width);
  }
  return found;
}

// Rows `places` of (rows, C), contiguous and of float32, become those of `found`.
void put_rows(const Tensor& all, const std::vector<int64_t>& places, const Tensor& found) {
  if (!all.is_cpu() || !found.is_contiguous()) {
    all.index_copy_(0, to_device(places, all.device()), found);
    return;
  }
  const int64_t width = all.size(1), count = places.size();
  for (int64_t row = 0; row < count; ++row) {
    std::copy_n(found.data_ptr<float>() + row * width, width, all.data_ptr<float>() + places[row] * width);
  }
}

// The tokens of a (B, T) step: the first count[b] columns of row b, from slot start[b] on. `columns` gets their places.
std::vector<Token> tokens_of(const Tensor& start, const Tensor& count, int64_t batch, int64_t width, int64_t slots,
                             std::vector<int64_t>& columns) {
  TORCH_CHECK_VALUE(start.numel() == batch && count.numel() == batch, "start and count must have ", batch, " entries");
  const std::vector<int64_t> starts = numbers(start), counts = numbers(count);
  std::vector<Token> tokens;
  for (int64_t row = 0; row < batch; ++row) {
    const int64_t first = starts[row], number = counts[row];
    TORCH_CHECK_VALUE(0 <= number && number <= width && 0 <= first && first + number <= slots, "row ", row, ": ",
                      number, " tokens from slot ", first, " on do not fit into ", width, " columns and ", slots,
                      " slots");
    for (int64_t column = 0; column < number; ++column) {
      tokens.push_back({row, first + column});
      columns.push_back(row * width + column);
    }
  }
  return tokens;
}

// Both embeddings of the tokens; the places of other columns stay unset.
Tensor embed_tokens(const Tensor& input_ids, const Tensor& start, const Tensor& count, const Tensor& wte,
                    const Tensor& wpe) {
  TORCH_CHECK_VALUE(input_ids.dim() == 2 && wte.scalar_type() == at::kFloat && wpe.scalar_type() == at::kFloat,
                    "input_ids must be (B, T), wte and wpe float32");
  TORCH_CHECK_VALUE(wpe.dim() == 2 && (wpe.size(1) == 1 || wpe.size(1) == wte.size(1)), "wpe must be (slots, C) or ",
                    "(slots, 1), for wte ", wte.sizes());
  const int64_t batch = input_ids.size(0), width = input_ids.size(1), n_embd = wte.size(1);
  Tensor hidden = at::empty({batch, width, n_embd}, wte.options());
  std::vector<int64_t> columns, positions;
  for (const Token& token : tokens_of(start, count, batch, width, wpe.size(0), columns)) {
    positions.push_back(token.position);
  }
  if (columns.empty()) {
    return hidden;
  }
  if (wte.is_cpu() && wte.is_contiguous() && wpe.is_contiguous()) {
    const std::vector<int64_t> ids = numbers(input_ids);
    const int64_t step = wpe.size(1) == 1 ? 0 : 1; // one number for all columns, or one for each
    for (size_t token = 0; token < columns.size(); ++token) {
      const int64_t id = ids[columns[token]];
      TORCH_CHECK_INDEX(0 <= id && id < wte.size(0), "input_ids: ", id, " is none of the ", wte.size(0), " of wte");
      const float* word = wte.data_ptr<float>() + id * n_embd;
      const float* place = wpe.data_ptr<float>() + positions[token] * wpe.size(1);
      float* out = hidden.data_ptr<float>() + columns[token] * n_embd;
      for (int64_t i = 0; i < n_embd; ++i) {
        out[i] = word[i] + place[i * step];
      }
    }
    return hidden;
  }
  const Tensor places = to_device(columns, wte.device());
  const Tensor ids = input_ids.reshape({-1}).index_select(0, places).to(at::kLong);
  const Tensor found = at::embedding(wte, ids).add_(at::embedding(wpe, at::tensor(positions, ids.options())));
  hidden.view({batch * width, n_embd}).index_copy_(0, places, found);
  return hidden;
}

Tensor embed_tokens_shape(const Tensor& input_ids, const Tensor&, const Tensor&, const Tensor& wte, const Tensor&) {
  return at::empty({input_ids.size(0), input_ids.size(1), wte.size(1)}, wte.options());
}

Tensor decode_blocks(const Tensor& hidden, const Tensor& start, const Tensor& count, const Tensor& weights,
                     const Tensor& vectors, Tensor& keys, Tensor& values, int64_t n_head, int64_t inner,
                     int64_t precision, std::string activation, double epsilon, int64_t parallel,
                     at::ArrayRef<double> slopes) {
  TORCH_CHECK_VALUE(hidden.dim() == 3 && hidden.scalar_type() == at::kFloat, "hidden must be (B, T, C) in float32");
  const int64_t batch = hidden.size(0), width = hidden.size(1), n_embd = hidden.size(2);
  const bool half = keys.scalar_type() == at::kShort; // float16 bits, which no precision policy converts
  TORCH_CHECK_VALUE(keys.dim() == 5 && keys.sizes() == values.sizes() && keys.is_contiguous() &&
                        values.is_contiguous() && keys.scalar_type() == values.scalar_type() &&
                        (half || keys.scalar_type() == at::kFloat) && keys.size(1) == batch && keys.size(2) == n_head &&
                        n_head * keys.size(4) == n_embd,
                    "keys and values must be (layers, B, n_head, slots, C / n_head) in float32 or int16, for hidden ",
                    hidden.sizes());
  const int64_t layer_count = keys.size(0), slots = keys.size(3);
  TORCH_CHECK_VALUE(slopes.empty() || static_cast<int64_t>(slopes.size()) == n_head, "slopes: expected ", n_head,
                    " or none, got ", slopes.size());
  const BlockForm form{n_head,
                       inner,
                       activation_of(activation),
                       static_cast<float>(epsilon),
                       parallel != 0,
                       {slopes.begin(), slopes.end()}};
  few_rows::MatrixReader reader(weights.data_ptr<uint8_t>(), weights.numel(), precision_of(precision));
  check_width(n_embd, precision_of(precision));
  check_width(inner, precision_of(precision));
  TORCH_CHECK_VALUE(vectors.scalar_type() == at::kFloat && vectors.is_contiguous() &&
                        vectors.numel() == layer_count * few_rows::layer_vectors(n_embd, inner),
                    "vectors: expected ", layer_count * few_rows::layer_vectors(n_embd, inner), " float32 numbers");
  std::vector<Layer> layers = few_rows::read_layers(reader, vectors.data_ptr<float>(), layer_count, n_embd, inner);
  check_packed(weights, reader.offset());
  if (weights.is_cpu()) {
    use_large_pages(weights);
    use_large_pages(keys);
    use_large_pages(values);
  }
  std::vector<int64_t> columns;
  std::vector<Token> tokens = tokens_of(start, count, batch, width, slots, columns);
  Tensor result = at::empty_like(hidden, at::MemoryFormat::Contiguous);
  if (tokens.empty()) {
    return result;
  }
  Tensor x = rows_at(hidden.reshape({batch * width, n_embd}), columns); // (tokens, C)
  if (hidden.is_cpu() && static_cast<int64_t>(tokens.size()) <= few_rows::kMaxRows) {
    const few_rows::Cache cache{keys.data_ptr(), values.data_ptr(), half ? Precision::Float16 : Precision::Float32,
                                batch, slots};
    const int threads = few_rows::useful_threads(weights.numel(), at::get_num_threads());
    few_rows::WorkerPool::instance().run(
        threads, std::make_shared<few_rows::DecodeStep>(std::move(layers), std::move(tokens), x.data_ptr<float>(),
                                                        cache, n_embd, form, threads));
  } else {
    const Tensor all_keys = half ? keys.view(at::kHalf) : keys, all_values = half ? values.view(at::kHalf) : values;
    for (int64_t index = 0; index < layer_count; ++index) {
      x = many_rows(layers[index], x, tokens, all_keys[index], all_values[index], form);
    }
  }
  put_rows(result.view({batch * width, n_embd}), columns, x);
  return result;
}

Tensor decode_blocks_shape(const Tensor& hidden, const Tensor&, const Tensor&, const Tensor&, const Tensor&, Tensor&,
                           Tensor&, int64_t, int64_t, int64_t, std::string, double, int64_t, at::ArrayRef<double>) {
  return at::empty_like(hidden, at::MemoryFormat::Contiguous);
}

// The first rows of `logits` = normed rows times head, and those behind them 0. Without `norm` the rows are as they
// are.
class HeadProduct final : public few_rows::Job {
public:
  HeadProduct(Matrix head, const Tensor& rows, const float* norm, const float* norm_bias, float epsilon,
              const Tensor& logits, int threads)
      : Job(threads), head_(head), rows_(rows.size(0)), all_rows_(logits.size(0)), space_(rows_, head.k, 1),
        logits_(logits.data_ptr<float>()), size_(few_rows::part_rows(head, rows_, threads)) {
    for (int64_t row = 0; row < rows_; ++row) {
      const float* x = rows.data_ptr<float>() + row * head.k;
      if (norm != nullptr) {
        few_rows::kernels().layer_norm(x, head.k, norm, norm_bias, epsilon, space_.rows[row]);
      } else {
        std::copy_n(x, head.k, space_.rows[row]);
      }
    }
    inputs_ = space_.inputs(space_.rows, rows_, head.k, head.precision);
  }

  void run() override {
    const few_rows::Place begin = place();
    const auto nothing = [] { return 0; };
    product_.share(begin, head_.n, size_, nothing, [this](int, int64_t first, int64_t last) {
      few_rows::kernels().product(head_, inputs_, first, last, logits_, head_.n, head_.row(last));
    });
    zeros_.share(begin, all_rows_ - rows_, 1, nothing, [this](int, int64_t first, int64_t last) {
      std::fill(logits_ + (rows_ + first) * head_.n, logits_ + (rows_ + last) * head_.n, 0.0f);
    });
  }

private:
  const Matrix head_;
  const int64_t rows_, all_rows_;
  few_rows::Workspace space_;
  float* const logits_;
  const int64_t size_;
  few_rows::Inputs inputs_;
  few_rows::Phase product_, zeros_;
};

Tensor next_logits(const Tensor& hidden, const Tensor& count, const Tensor& norm, const Tensor& norm_bias,
                   const Tensor& weights, int64_t vocab_size, int64_t precision, double epsilon, int64_t norms) {
  TORCH_CHECK_VALUE(hidden.dim() == 3 && hidden.scalar_type() == at::kFloat, "hidden must be (B, T, C) in float32");
  TORCH_CHECK_VALUE(count.numel() == hidden.size(0), "count must have ", hidden.size(0), " entries");
  const int64_t batch = hidden.size(0), n_embd = hidden.size(2);
  few_rows::MatrixReader reader(weights.data_ptr<uint8_t>(), weights.numel(), precision_of(precision));
  check_width(n_embd, precision_of(precision));
  const Matrix head = reader.next(vocab_size, n_embd);
  check_packed(weights, reader.offset());
  if (weights.is_cpu()) {
    use_large_pages(weights);
  }
  std::vector<int64_t> real, last; // rows with tokens, and the place of the last one of each
  const std::vector<int64_t> counts = numbers(count);
  for (int64_t row = 0; row < batch; ++row) {
    if (counts[row] > 0) {
      real.push_back(row);
      last.push_back(row * hidden.size(1) + std::min(counts[row], hidden.size(1)) - 1);
    }
  }
  const Tensor rows = rows_at(hidden.reshape({-1, n_embd}), last); // (rows with tokens, C)
  const bool all = rows.size(0) == batch;
  const auto in_place = [&](const Tensor& found) { // zeros for rows without tokens
    return all ? found
               : at::zeros({batch, vocab_size}, found.options()).index_copy_(0, to_device(real, found.device()), found);
  };
  if (rows.size(0) == 0) {
    return at::zeros({batch, vocab_size}, hidden.options());
  }
  if (!hidden.is_cpu() || rows.size(0) > few_rows::kMaxRows) {
    const Tensor normed = norms != 0 ? at::layer_norm(rows, {n_embd}, norm, norm_bias, epsilon) : rows;
    const Tensor weight = as_float(head, hidden.device());
    const bool own = hidden.is_cpu() && runtime_kernels::multiplies();
    return in_place(own ? runtime_kernels::multiply(normed, weight.t(), {}) : at::mm(normed, weight.t()));
  }
  const bool at_front = real.back() == rows.size(0) - 1; // what a server asks for
  const Tensor logits = at::empty({at_front ? batch : rows.size(0), vocab_size}, hidden.options());
  const int threads = few_rows::useful_threads(weights.numel(), at::get_num_threads());
  few_rows::WorkerPool::instance().run(
      threads, std::make_shared<HeadProduct>(head, rows, norms != 0 ? norm.data_ptr<float>() : nullptr,
                                             norms != 0 ? norm_bias.data_ptr<float>() : nullptr,
                                             static_cast<float>(epsilon), logits, threads));
  return at_front ? logits : in_place(logits);
}

Tensor next_logits_shape(const Tensor& hidden, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                         int64_t vocab_size, int64_t, double, int64_t) {
  return at::empty({hidden.size(0), vocab_size}, hidden.options());
}

} // namespace

TORCH_LIBRARY(gpt2_decode, m) {
  m.def("Kernels() -> str", [] { return std::string(few_rows::kernels().name); });
  m.def("EmbedTokens(Tensor input_ids, Tensor start, Tensor count, Tensor wte, Tensor wpe) -> Tensor");
  m.def("DecodeBlocks(Tensor hidden, Tensor start, Tensor count, Tensor weights, Tensor vectors, Tensor(a!) keys, "
        "Tensor(b!) values, *, int n_head, int inner, int precision, str activation, float epsilon, int parallel=0, "
        "float[] slopes=[]) -> Tensor");
  m.def("NextLogits(Tensor hidden, Tensor count, Tensor norm, Tensor norm_bias, Tensor weights, *, int vocab_size, "
        "int precision, float epsilon, int norms=1) -> Tensor");
}

TORCH_LIBRARY_IMPL(gpt2_decode, CPU, m) {
  m.impl("EmbedTokens", embed_tokens);
  m.impl("DecodeBlocks", decode_blocks);
  m.impl("NextLogits", next_logits);
}

TORCH_LIBRARY_IMPL(gpt2_decode, CUDA, m) {
  m.impl("EmbedTokens", embed_tokens);
  m.impl("DecodeBlocks", decode_blocks);
  m.impl("NextLogits", next_logits);
}

TORCH_LIBRARY_IMPL(gpt2_decode, Meta, m) {
  m.impl("EmbedTokens", embed_tokens_shape);
  m.impl("DecodeBlocks", decode_blocks_shape);
  m.impl("NextLogits", next_logits_shape);
}
