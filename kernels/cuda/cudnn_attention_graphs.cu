// The graphs that cuDNN 9 knows as attention: it recognises the pattern as a whole, so the order of
// operations and the types of what lies between them are its own.
#include "kernels/cuda/cudnn_attention.h"

namespace transxssm::cuda::cudnn {

namespace {

AttentionLayout::Strides strides_of(const Tensor& x) {
  return {x.stride(0), x.stride(1), x.stride(2)};
}
AttentionLayout::Strides strides_of_sums(const Tensor& x) {
  return x ? AttentionLayout::Strides{x.stride(0), 1, x.stride(1)} : AttentionLayout::Strides{};
}

// [B,H,T,P] and, for the right operand of a product, [B,H,P,T].
Sizes heads_first(const AttentionLayout::Strides& s) {
  return {s[0], s[2], s[1], 1};
}
Sizes heads_first_transposed(const AttentionLayout::Strides& s) {
  return {s[0], s[2], 1, s[1]};
}

// What both directions begin with, in f32 [B,H,T,T].
class Scores {
 public:
  Scores(Graph& graph, const AttentionLayout& z)
      : graph_(graph), sizes_{z.rows, z.heads, z.tokens, z.tokens} {}
  Graph::Id inside(cudnnDataType_t type = CUDNN_DATA_FLOAT) { return graph_.inside(type, sizes_); }
  Graph::Id scaled_product(Graph::Id a, Graph::Id b, Graph::Id scale) {
    const Graph::Id product = inside();
    graph_.matmul(a, b, product);
    return apply(CUDNN_POINTWISE_MUL, {product, scale});
  }
  Graph::Id apply(cudnnPointwiseMode_t mode, std::initializer_list<Graph::Id> inputs) {
    const Graph::Id result = inside();
    graph_.pointwise(mode, inputs, result);
    return result;
  }
  // `unseen` where the key comes after the query.
  Graph::Id causal(Graph::Id scores, Graph::Id unseen) {
    const Graph::Id query = inside(CUDNN_DATA_INT32), key = inside(CUDNN_DATA_INT32);
    const Graph::Id seen = inside(CUDNN_DATA_BOOLEAN), result = inside();
    graph_.index(2, scores, query);
    graph_.index(3, scores, key);
    graph_.pointwise(CUDNN_POINTWISE_CMP_GE, {query, key}, seen, CUDNN_DATA_BOOLEAN);
    graph_.pointwise(CUDNN_POINTWISE_BINARY_SELECT, {scores, unseen, seen}, result);
    return result;
  }

 private:
  Graph& graph_;
  Sizes sizes_;
};

}  // namespace

AttentionLayout::AttentionLayout(const AttentionForward& args)
    : rows(args.q.size(0)),
      tokens(args.q.size(1)),
      heads(args.q.size(2)),
      key_heads(args.k.size(2)),
      head_dim(args.q.size(3)),
      q(strides_of(args.q)),
      k(strides_of(args.k)),
      v(strides_of(args.v)),
      out(strides_of(args.out)),
      log_sum_exp(strides_of_sums(args.log_sum_exp)) {}

AttentionLayout::AttentionLayout(const AttentionBackward& args)
    : AttentionLayout(AttentionForward{
          .q = args.q, .k = args.k, .v = args.v, .out = args.out, .log_sum_exp = args.log_sum_exp}) {
  d_out = strides_of(args.d_out);
  dq = strides_of(args.dq);
  dk = strides_of(args.dk);
  dv = strides_of(args.dv);
}

ForwardGraph::ForwardGraph(const AttentionLayout& z) {
  const Sizes of_queries = {z.rows, z.heads, z.tokens, z.head_dim};
  const Sizes of_keys = {z.rows, z.key_heads, z.tokens, z.head_dim}, sums = {z.rows, z.heads, z.tokens, 1};
  const Sizes keys_transposed = {z.rows, z.key_heads, z.head_dim, z.tokens};
  q = graph.in_memory(CUDNN_DATA_BFLOAT16, of_queries, heads_first(z.q));
  k = graph.in_memory(CUDNN_DATA_BFLOAT16, keys_transposed, heads_first_transposed(z.k));
  v = graph.in_memory(CUDNN_DATA_BFLOAT16, of_keys, heads_first(z.v));
  out = graph.in_memory(CUDNN_DATA_BFLOAT16, of_queries, heads_first(z.out));
  scale = graph.number();
  unseen = graph.number();

  Scores scores(graph, z);
  const Graph::Id seen = scores.causal(scores.scaled_product(q, k, scale), unseen);
  const Graph::Id max = graph.inside(CUDNN_DATA_FLOAT, sums), sum = graph.inside(CUDNN_DATA_FLOAT, sums);
  graph.reduce(CUDNN_REDUCE_TENSOR_MAX, seen, max);
  const Graph::Id weights =
      scores.apply(CUDNN_POINTWISE_EXP, {scores.apply(CUDNN_POINTWISE_SUB, {seen, max})});
  graph.reduce(CUDNN_REDUCE_TENSOR_ADD, weights, sum);
  // Part of the pattern also where nobody asks for it.
  const Graph::Id log = graph.inside(CUDNN_DATA_FLOAT, sums);
  graph.pointwise(CUDNN_POINTWISE_LOG, {sum}, log);
  const bool keep = z.log_sum_exp != AttentionLayout::Strides{};
  if (keep) log_sum_exp = graph.in_memory(CUDNN_DATA_FLOAT, sums, heads_first(z.log_sum_exp));
  graph.pointwise(CUDNN_POINTWISE_ADD, {max, log}, keep ? log_sum_exp : graph.inside(CUDNN_DATA_FLOAT, sums));
  const Graph::Id probabilities = scores.inside(CUDNN_DATA_BFLOAT16);
  graph.pointwise(CUDNN_POINTWISE_DIV, {weights, sum}, probabilities);
  graph.matmul(probabilities, v, out);
}

BackwardGraph::BackwardGraph(const AttentionLayout& z) {
  const cudnnDataType_t bf16 = CUDNN_DATA_BFLOAT16, f32 = CUDNN_DATA_FLOAT;
  const Sizes of_queries = {z.rows, z.heads, z.tokens, z.head_dim};
  const Sizes of_keys = {z.rows, z.key_heads, z.tokens, z.head_dim};
  const Sizes keys_transposed = {z.rows, z.key_heads, z.head_dim, z.tokens};
  const Sizes of_sums = {z.rows, z.heads, z.tokens, 1};
  const Sizes transposed = {z.heads * z.tokens * z.tokens, z.tokens * z.tokens, 1, z.tokens};
  q = graph.in_memory(bf16, of_queries, heads_first(z.q));
  k = graph.in_memory(bf16, keys_transposed, heads_first_transposed(z.k));
  v = graph.in_memory(bf16, keys_transposed, heads_first_transposed(z.v));
  out = graph.in_memory(bf16, of_queries, heads_first(z.out));
  d_out = graph.in_memory(bf16, of_queries, heads_first(z.d_out));
  log_sum_exp = graph.in_memory(f32, of_sums, heads_first(z.log_sum_exp));
  dq = graph.in_memory(bf16, of_queries, heads_first(z.dq));
  dk = graph.in_memory(bf16, of_keys, heads_first(z.dk));
  dv = graph.in_memory(bf16, of_keys, heads_first(z.dv));
  scale = graph.number();
  one = graph.number();
  unseen = graph.number();
  sums = graph.in_memory(f32, of_sums, contiguous(of_sums));

  // sums = <d_out, out>
  const Graph::Id products = graph.inside(f32, of_queries), dots = graph.inside(f32, of_sums);
  graph.pointwise(CUDNN_POINTWISE_MUL, {d_out, out}, products);
  graph.reduce(CUDNN_REDUCE_TENSOR_ADD, products, dots);
  graph.pointwise(CUDNN_POINTWISE_MUL, {dots, one}, sums);

  // P = exp(scale q k^T - L)
  Scores scores(graph, z);
  const Graph::Id shifted =
      scores.apply(CUDNN_POINTWISE_SUB, {scores.scaled_product(q, k, scale), log_sum_exp});
  const Graph::Id weights = scores.apply(CUDNN_POINTWISE_EXP, {scores.causal(shifted, unseen)});

  // A gradient of keys or values: weights^T rows, then the sum over the heads that share a key head.
  const auto gradient = [&](Graph::Id of_scores, Graph::Id rows, Graph::Id result) {
    const Graph::Id turned = graph.inside(bf16, {z.rows, z.heads, z.tokens, z.tokens}, transposed);
    graph.reshape(of_scores, turned);
    if (z.heads == z.key_heads) return graph.matmul(turned, rows, result);
    const Graph::Id every_head = graph.inside(bf16, of_queries);
    graph.matmul(turned, rows, every_head);
    graph.reduce(CUDNN_REDUCE_TENSOR_ADD, every_head, result);
  };
  gradient(weights, d_out, dv);

  // dS = P (d_out v^T - sums) scale
  const Graph::Id d_weights = scores.inside();
  graph.matmul(d_out, v, d_weights);
  const Graph::Id centred = scores.apply(CUDNN_POINTWISE_SUB, {d_weights, sums});
  const Graph::Id d_scores =
      scores.apply(CUDNN_POINTWISE_MUL, {scores.apply(CUDNN_POINTWISE_MUL, {centred, weights}), scale});
  gradient(d_scores, q, dk);

  const Graph::Id keys = graph.inside(bf16, of_keys, heads_first(z.k));
  graph.reshape(k, keys);
  dq_sums = graph.in_memory(f32, of_queries, contiguous(of_queries));
  graph.matmul(d_scores, keys, dq_sums);
  graph.pointwise(CUDNN_POINTWISE_IDENTITY, {dq_sums}, dq);
}

}  // namespace transxssm::cuda::cudnn
