// Per block of queries i and keys j, from the saved log of the sums of exponentials (lse):
//   P = exp(scale q k^T - lse)     dV_j += P^T dO_i     dP = dO_i V_j^T     dS = P (dP - <dO_i, O_i>) scale
//   dQ_i += dS K_j                 dK_j += dS^T Q_i
// dQ sums over keys upwards, dK and dV over heads and queries upwards, whichever way the work is cut.
#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_checks.h"
#include "kernels/cpu/targets.h"
#include "kernels/cpu/thread_buffers.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_backward.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/attention_common-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

// Sizes and how the work is cut.
struct AttentionBackwardSizes : AttentionSizes {
  AttentionBackwardSizes(const Stream& stream, const AttentionBackward& args) : AttentionSizes(args) {
    const int64_t tasks = rows * key_heads, threads = stream.num_threads();
    by_key_head = (tasks + threads - 1) / threads * threads * 5 <= tasks * 7;
    key_blocks_per_task = by_key_head ? key_blocks() : 1;
  }
  // One task a key head forms everything in 5 products a block. Where that leaves threads idle, two passes
  // over smaller tasks, of 4 and 3 products: the same sums in the same order.
  bool by_key_head;
  int64_t key_blocks_per_task;
};

// Memory of one thread. E: operands of products, in the layouts of kernels/cpu/block_gemm_bf16.h.
template <class P>
struct AttentionBackwardBuffers {
  using T = typename P::Real;
  using E = typename P::Operand;
  AttentionBackwardBuffers(Carver& carver, const AttentionBackwardSizes& z) {
    const auto take = [&]<class Element>(Element*& to, int64_t size) {
      to = carver.take(DTypeOf<Element>::value, {size}).template data<Element>();
    };
    // Where an operand is the matrix itself, and where gradients are written in place, buffers take nothing.
    const bool pairs = kPair<E> == 2, rounded = !std::is_same_v<typename P::Storage, T>;
    const int64_t queries = kQueryBlock * z.head_dim, keys = kKeyBlock * z.head_dim;
    take(q, rounded ? queries : 0);
    take(q_columns, queries);
    take(d_out, rounded ? queries : 0);
    take(d_out_columns, queries);
    take(k, rounded ? keys : 0);
    take(v, rounded ? keys : 0);
    take(weights, kKeyBlock * kQueryBlock);
    take(weight_rows, pairs ? kKeyBlock * kQueryBlock : 0);
    take(d_scores, kKeyBlock * kQueryBlock);
    take(d_score_rows, pairs ? kKeyBlock * kQueryBlock : 0);
    take(d_score_pairs, pairs ? kKeyBlock * kQueryBlock : 0);
    take(out_dot, kQueryBlock);
    take(dq, rounded ? queries : 0);
    take(dk, rounded ? z.key_blocks_per_task * keys : 0);
    take(dv, rounded ? z.key_blocks_per_task * keys : 0);
  }
  E* q;
  E* q_columns;
  E* d_out;
  E* d_out_columns;
  E* k;
  E* v;
  T* weights;  // P^T
  E* weight_rows;
  T* d_scores;  // dS^T
  E* d_score_rows;
  E* d_score_pairs;
  T* out_dot;  // <dO_i, O_i>
  T* dq;       // sums not yet rounded: of a block of queries,
  T* dk;       // and of the key blocks of a task
  T* dv;
};

// Which gradients a pass forms.
struct AttentionPass {
  bool queries, keys;
};

template <class P>
class AttentionRowBackward {
 public:
  using T = typename P::Real;
  using E = typename P::Operand;
  using S = typename P::Storage;
  static constexpr bool kRounded = !std::is_same_v<S, T>;

  AttentionRowBackward(const AttentionBackward& args, const AttentionBackwardSizes& z, int64_t row,
                       const AttentionBackwardBuffers<P>& buffer)
      : args_(args), z_(z), row_(row), buffer_(buffer) {}

  // Query block `block` of a head against its visible key blocks in [begin, end).
  void query_block(int64_t head, int64_t block, int64_t begin, int64_t end, AttentionPass pass) {
    const QueryBlock queries(z_, block);
    const int64_t first = first_visible_key(args_.first_key, row_, queries) / kKeyBlock;
    const int64_t last = (queries.begin + queries.count - 1 + z_.offset) / kKeyBlock;
    if (std::max(begin, first) > std::min(end - 1, last)) return;
    prepare(head, queries);
    Sums dq = sums(args_.dq, buffer_.dq, queries.begin, head);
    for (int64_t b = std::max(begin, first); b <= std::min(end - 1, last); ++b) {
      pair(head, queries, KeyBlock(z_, queries, b), pass, dq, b > first);
    }
    if constexpr (kRounded) {
      if (pass.queries) round(dq, queries.count, args_.dq, queries.begin, head);
    }
  }

  // Gradients of key blocks [begin, end) of a key head are formed next, from zero.
  void begin_keys(int64_t key_head, int64_t begin, int64_t end) {
    first_key_ = begin * kKeyBlock;
    dk_ = sums(args_.dk, buffer_.dk, first_key_, key_head);
    dv_ = sums(args_.dv, buffer_.dv, first_key_, key_head);
    const int64_t count = (kRounded ? end * kKeyBlock : limit(end)) - first_key_;
    for (int64_t key = 0; key < count; ++key) {
      std::fill_n(dk_.data + key * dk_.ld, z_.head_dim, T(0));
      std::fill_n(dv_.data + key * dv_.ld, z_.head_dim, T(0));
    }
  }
  void end_keys(int64_t key_head, int64_t end) {
    if constexpr (kRounded) {
      const int64_t visible = std::min(end * kKeyBlock, z_.keys);
      round(dk_, visible - first_key_, args_.dk, first_key_, key_head);
      round(dv_, visible - first_key_, args_.dv, first_key_, key_head);
      for (int64_t key = visible; key < limit(end); ++key) {
        std::fill_n(address<S>(args_.dk, row_, key, key_head), z_.head_dim, S{});
        std::fill_n(address<S>(args_.dv, row_, key, key_head), z_.head_dim, S{});
      }
    }
  }

 private:
  // Rows of a gradient: in the tensor itself, or in a buffer.
  struct Sums {
    T* data;
    int64_t ld;
  };
  Sums sums(const Tensor& tensor, T* buffer, int64_t token, int64_t head) const {
    if constexpr (kRounded) return {buffer, z_.head_dim};
    return {address<T>(tensor, row_, token, head), tensor.stride(1)};
  }
  void round(const Sums& from, int64_t count, const Tensor& to, int64_t token, int64_t head) const {
    pack(from.data, from.ld, count, z_.head_dim, address<S>(to, row_, token, head), to.stride(1));
  }
  // The key behind the blocks up to `end`: behind the last one that any query sees all the rest follows.
  int64_t limit(int64_t end) const { return end == z_.key_blocks() ? z_.keys : end * kKeyBlock; }

  void prepare(int64_t head, const QueryBlock& queries) {
    const int64_t p = z_.head_dim, ld_q = args_.q.stride(1), ld_d_out = args_.d_out.stride(1);
    const S* q = address<S>(args_.q, row_, queries.begin, head);
    const S* d_out = address<S>(args_.d_out, row_, queries.begin, head);
    const S* out = address<S>(args_.out, row_, queries.begin, head);
    block_columns(as_rows<E>(queries.count, p, q, ld_q, buffer_.q), queries.count, p, args_.scale,
                  buffer_.q_columns);
    block_columns(as_rows<E>(queries.count, p, d_out, ld_d_out, buffer_.d_out), queries.count, p, 1,
                  buffer_.d_out_columns);
    q_pairs_ = as_pairs<E>(queries.count, p, q, ld_q, buffer_.q);
    d_out_pairs_ = as_pairs<E>(queries.count, p, d_out, ld_d_out, buffer_.d_out);
    for (int64_t i = 0; i < queries.count; ++i) {
      buffer_.out_dot[i] = sum_lanes<T>(p, [&](auto d, int64_t j) HWY_ATTR {
        return hn::Mul(load(d, d_out + i * args_.d_out.stride(1) + j),
                       load(d, out + i * args_.out.stride(1) + j));
      });
    }
  }

  void pair(int64_t head, const QueryBlock& queries, const KeyBlock& keys, AttentionPass pass, const Sums& dq,
            bool add_to_dq) {
    const int64_t key_head = head / z_.heads_per_key_head(), p = z_.head_dim;
    visible_scores<P>(z_, args_.k, args_.first_key, row_, key_head, queries, keys, buffer_.q_columns,
                      buffer_.weights, buffer_.k);
    const Operand<E> v = as_rows<E>(keys.count, p, address<S>(args_.v, row_, keys.begin, key_head),
                                    args_.v.stride(1), buffer_.v);
    block_gemm(keys.count, queries.count, p, v.rows(), buffer_.d_out_columns, kQueryBlock, buffer_.d_scores,
               kQueryBlock, false);
    const T* log_sum_exp = address<T>(args_.log_sum_exp, row_, head, queries.begin);
    const T scale = static_cast<T>(args_.scale);
    for_lanes<T>(queries.count, [&](auto d, int64_t i) HWY_ATTR {
      const auto lse = hn::LoadU(d, log_sum_exp + i), out_dot = hn::LoadU(d, buffer_.out_dot + i);
      for (int64_t j = 0; j < keys.count; ++j) {
        T* weights = buffer_.weights + j * kQueryBlock + i;
        T* d_scores = buffer_.d_scores + j * kQueryBlock + i;
        const auto weight = weight_exp<E>(d, hn::Sub(scaled<E>(d, hn::LoadU(d, weights), args_.scale), lse));
        hn::StoreU(weight, d, weights);
        const auto centred = hn::Sub(hn::LoadU(d, d_scores), out_dot);
        hn::StoreU(hn::Mul(hn::Mul(weight, centred), hn::Set(d, scale)), d, d_scores);
      }
    });
    if (pass.keys) {
      const Operand<E> weights = query_rows(buffer_.weights, keys, queries, buffer_.weight_rows);
      const Operand<E> d_scores = query_rows(buffer_.d_scores, keys, queries, buffer_.d_score_rows);
      const int64_t key = keys.begin - first_key_;
      block_gemm(keys.count, p, queries.count, weights.rows(), d_out_pairs_.data, d_out_pairs_.ld,
                 dv_.data + key * dv_.ld, dv_.ld, true);
      block_gemm(keys.count, p, queries.count, d_scores.rows(), q_pairs_.data, q_pairs_.ld,
                 dk_.data + key * dk_.ld, dk_.ld, true);
    }
    if (pass.queries) {
      const Operand<E> d_scores =
          as_pairs<E>(keys.count, queries.count, buffer_.d_scores, kQueryBlock, buffer_.d_score_pairs);
      const Operand<E> k = as_pairs<E>(keys.count, p, address<S>(args_.k, row_, keys.begin, key_head),
                                       args_.k.stride(1), buffer_.k);
      block_gemm(queries.count, p, keys.count, d_scores.transposed(), k.data, k.ld, dq.data, dq.ld,
                 add_to_dq);
    }
  }

  // `rows` of scores [keys, queries], any number of queries.
  static Operand<E> query_rows(const T* scores, const KeyBlock& keys, const QueryBlock& queries, E* buffer) {
    if constexpr (kPair<E> == 2) {
      pack_rows(keys.count, queries.count, scores, kQueryBlock, buffer, kQueryBlock);
      return {buffer, kQueryBlock};
    } else {
      return {scores, kQueryBlock};
    }
  }

  const AttentionBackward& args_;
  const AttentionBackwardSizes& z_;
  int64_t row_;
  AttentionBackwardBuffers<P> buffer_;
  Operand<E> q_pairs_{}, d_out_pairs_{};  // of the block of queries
  Sums dk_{}, dv_{};                      // from first_key_ on
  int64_t first_key_ = 0;
};

template <class P>
void backward(Stream& stream, const AttentionBackward& args) {
  const AttentionBackwardSizes z(stream, args);
  const ThreadBuffers<AttentionBackwardBuffers<P>, AttentionBackwardSizes> buffers(stream, z);
  const int64_t query_blocks = z.query_blocks(), key_blocks = z.key_blocks(), shared = z.heads_per_key_head();
  // All the heads of key head h that meet key blocks [begin, end) of a row.
  const auto key_blocks_of = [&](int thread, int64_t row, int64_t h, int64_t begin, int64_t end,
                                 AttentionPass pass) {
    AttentionRowBackward<P> work(args, z, row, buffers(thread));
    work.begin_keys(h, begin, end);
    for (int64_t head = h * shared; head < (h + 1) * shared; ++head) {
      for (int64_t block = 0; block < query_blocks; ++block) work.query_block(head, block, begin, end, pass);
    }
    work.end_keys(h, end);
  };
  const int64_t tasks = z.rows * z.key_heads;
  if (z.by_key_head) {
    parallel_items(stream, tasks, [&](int64_t i, int thread) {
      key_blocks_of(thread, i / z.key_heads, i % z.key_heads, 0, key_blocks,
                    AttentionPass{.queries = true, .keys = true});
    });
    return;
  }
  parallel_items(stream, tasks * key_blocks, [&](int64_t i, int thread) {
    const int64_t task = i / key_blocks, block = i % key_blocks;
    key_blocks_of(thread, task / z.key_heads, task % z.key_heads, block, block + 1,
                  AttentionPass{.queries = false, .keys = true});
  });
  parallel_items(stream, z.rows * z.heads * query_blocks, [&](int64_t i, int thread) {
    const int64_t head = i / query_blocks;
    AttentionRowBackward<P> work(args, z, head / z.heads, buffers(thread));
    work.query_block(head % z.heads, query_blocks - 1 - i % query_blocks, 0, key_blocks,
                     AttentionPass{.queries = true, .keys = false});
  });
}

void backward_any(Stream& stream, const AttentionBackward& args) {
  with_precision(args.q.dtype(), [&](auto precision) { backward<decltype(precision)>(stream, args); });
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(backward_any);

void run(Stream& stream, const AttentionBackward& args) {
  check_attention(args);
  const DType dtype = args.q.dtype();
  TRANSXSSM_CHECK(args.log_sum_exp, "AttentionBackward.log_sum_exp is missing");
  expect(args.d_out, "AttentionBackward.d_out", dtype, args.q.shape());
  expect(args.dq, "AttentionBackward.dq", dtype, args.q.shape());
  expect(args.dk, "AttentionBackward.dk", dtype, args.k.shape());
  expect(args.dv, "AttentionBackward.dv", dtype, args.v.shape());
  HWY_DYNAMIC_DISPATCH(backward_any)(stream, args);
}

}  // namespace transxssm::cpu
#endif
