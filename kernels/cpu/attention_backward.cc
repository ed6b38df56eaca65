// Per block of queries i and keys j, from the saved log of the sums of exponentials (lse):
//   P = exp(scale q k^T - lse)     dV_j += P^T dO_i     dP = dO_i V_j^T     dS = P (dP - <dO_i, O_i>) scale
//   dQ_i += dS K_j                 dK_j += dS^T Q_i
// dQ sums over keys upwards, dK and dV over heads and queries upwards, whichever way the work is cut.
#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_checks.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_backward.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/attention_common-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

// Memory of one thread.
template <class T>
struct AttentionBackwardBuffers {
  AttentionBackwardBuffers(Carver& carver, const AttentionSizes& z) {
    const auto take = [&](int64_t m, int64_t n) {
      return carver.take(DTypeOf<T>::value, {m, n}).template data<T>();
    };
    q_transposed = take(z.head_dim, kQueryBlock);
    d_out_transposed = take(z.head_dim, kQueryBlock);
    weights = take(kKeyBlock, kQueryBlock);
    d_scores = take(kKeyBlock, kQueryBlock);
    out_dot = take(1, kQueryBlock);
  }
  T* q_transposed;
  T* d_out_transposed;
  T* weights;   // P^T
  T* d_scores;  // dS^T
  T* out_dot;   // <dO_i, O_i>
};

// Which gradients a pass forms.
struct AttentionPass {
  bool queries, keys;
};

template <class T>
class AttentionRowBackward {
 public:
  AttentionRowBackward(const AttentionBackward& args, const AttentionSizes& z, int64_t row,
                       const AttentionBackwardBuffers<T>& buffer)
      : args_(args), z_(z), row_(row), buffer_(buffer) {}

  // Query block `block` of a head against its visible key blocks in [begin, end).
  void query_block(int64_t head, int64_t block, int64_t begin, int64_t end, AttentionPass pass) {
    const QueryBlock queries(z_, block);
    const int64_t first = first_visible_key(args_.first_key, row_, queries) / kKeyBlock;
    const int64_t last = (queries.begin + queries.count - 1 + z_.offset) / kKeyBlock;
    if (std::max(begin, first) > std::min(end - 1, last)) return;
    prepare(head, queries);
    for (int64_t b = std::max(begin, first); b <= std::min(end - 1, last); ++b) {
      pair(head, queries, KeyBlock(z_, queries, b), pass, b > first);
    }
  }

  // Sets dk and dv of key blocks [begin, end) to zero; the last one's also behind the last visible key.
  void clear_keys(int64_t key_head, int64_t begin, int64_t end) {
    const int64_t limit = end == z_.key_blocks() ? z_.keys : end * kKeyBlock;
    for (int64_t key = begin * kKeyBlock; key < limit; ++key) {
      std::fill_n(address<T>(args_.dk, row_, key, key_head), z_.head_dim, T(0));
      std::fill_n(address<T>(args_.dv, row_, key, key_head), z_.head_dim, T(0));
    }
  }

 private:
  void prepare(int64_t head, const QueryBlock& queries) {
    const int64_t p = z_.head_dim;
    const T* d_out = address<T>(args_.d_out, row_, queries.begin, head);
    const T* out = address<T>(args_.out, row_, queries.begin, head);
    transpose(queries.count, p, address<T>(args_.q, row_, queries.begin, head), args_.q.stride(1),
              buffer_.q_transposed, kQueryBlock, static_cast<T>(args_.scale));
    transpose(queries.count, p, d_out, args_.d_out.stride(1), buffer_.d_out_transposed, kQueryBlock);
    for (int64_t i = 0; i < queries.count; ++i) {
      buffer_.out_dot[i] = sum_lanes<T>(p, [&](auto d, int64_t j) HWY_ATTR {
        return hn::Mul(hn::LoadU(d, d_out + i * args_.d_out.stride(1) + j),
                       hn::LoadU(d, out + i * args_.out.stride(1) + j));
      });
    }
  }

  void pair(int64_t head, const QueryBlock& queries, const KeyBlock& keys, AttentionPass pass,
            bool add_to_dq) {
    const int64_t key_head = head / z_.heads_per_key_head(), p = z_.head_dim;
    visible_scores(z_, args_.k, args_.first_key, row_, key_head, queries, keys, buffer_.q_transposed,
                   buffer_.weights);
    block_gemm(keys.count, queries.count, p,
               StridedMatrix<T>{address<T>(args_.v, row_, keys.begin, key_head), args_.v.stride(1), 1},
               buffer_.d_out_transposed, kQueryBlock, buffer_.d_scores, kQueryBlock, false);
    const T* log_sum_exp = address<T>(args_.log_sum_exp, row_, head, queries.begin);
    const T scale = static_cast<T>(args_.scale);
    for_lanes<T>(queries.count, [&](auto d, int64_t i) HWY_ATTR {
      const auto lse = hn::LoadU(d, log_sum_exp + i), out_dot = hn::LoadU(d, buffer_.out_dot + i);
      for (int64_t j = 0; j < keys.count; ++j) {
        T* weights = buffer_.weights + j * kQueryBlock + i;
        T* d_scores = buffer_.d_scores + j * kQueryBlock + i;
        const auto weight = hn::Exp(d, hn::Sub(hn::LoadU(d, weights), lse));
        hn::StoreU(weight, d, weights);
        const auto centred = hn::Sub(hn::LoadU(d, d_scores), out_dot);
        hn::StoreU(hn::Mul(hn::Mul(weight, centred), hn::Set(d, scale)), d, d_scores);
      }
    });
    if (pass.keys) {
      block_gemm(keys.count, p, queries.count, StridedMatrix<T>{buffer_.weights, kQueryBlock, 1},
                 address<T>(args_.d_out, row_, queries.begin, head), args_.d_out.stride(1),
                 address<T>(args_.dv, row_, keys.begin, key_head), args_.dv.stride(1), true);
      block_gemm(keys.count, p, queries.count, StridedMatrix<T>{buffer_.d_scores, kQueryBlock, 1},
                 address<T>(args_.q, row_, queries.begin, head), args_.q.stride(1),
                 address<T>(args_.dk, row_, keys.begin, key_head), args_.dk.stride(1), true);
    }
    if (pass.queries) {
      block_gemm(queries.count, p, keys.count, StridedMatrix<T>{buffer_.d_scores, 1, kQueryBlock},
                 address<T>(args_.k, row_, keys.begin, key_head), args_.k.stride(1),
                 address<T>(args_.dq, row_, queries.begin, head), args_.dq.stride(1), add_to_dq);
    }
  }

  const AttentionBackward& args_;
  const AttentionSizes& z_;
  int64_t row_;
  AttentionBackwardBuffers<T> buffer_;
};

template <class T>
void backward(Stream& stream, const AttentionBackward& args) {
  const AttentionSizes z(args);
  Carver counter;
  AttentionBackwardBuffers<T>(counter, z);
  const int64_t thread_bytes = counter.used();
  Scratch scratch(stream, stream.num_threads() * thread_bytes);
  const auto on_row = [&](int64_t row, int thread) {
    Carver own(reinterpret_cast<std::byte*>(scratch.data<uint8_t>()) + thread * thread_bytes, thread_bytes);
    return AttentionRowBackward<T>(args, z, row, AttentionBackwardBuffers<T>(own, z));
  };
  const int64_t query_blocks = z.query_blocks(), key_blocks = z.key_blocks(), shared = z.heads_per_key_head();
  // All the heads of key head h that meet key blocks [begin, end).
  const auto key_blocks_of = [&](AttentionRowBackward<T>& work, int64_t h, int64_t begin, int64_t end,
                                 AttentionPass pass) {
    work.clear_keys(h, begin, end);
    for (int64_t head = h * shared; head < (h + 1) * shared; ++head) {
      for (int64_t block = 0; block < query_blocks; ++block) work.query_block(head, block, begin, end, pass);
    }
  };
  // One task a key head forms everything in 5 products a block. Where that leaves threads idle, two passes
  // over smaller tasks, of 4 and 3 products: the same sums in the same order.
  const int64_t tasks = z.rows * z.key_heads, threads = stream.num_threads();
  if ((tasks + threads - 1) / threads * threads * 5 <= tasks * 7) {
    parallel_items(stream, tasks, [&](int64_t i, int thread) {
      AttentionRowBackward<T> work = on_row(i / z.key_heads, thread);
      key_blocks_of(work, i % z.key_heads, 0, key_blocks, AttentionPass{.queries = true, .keys = true});
    });
    return;
  }
  parallel_items(stream, tasks * key_blocks, [&](int64_t i, int thread) {
    const int64_t task = i / key_blocks, block = i % key_blocks;
    AttentionRowBackward<T> work = on_row(task / z.key_heads, thread);
    key_blocks_of(work, task % z.key_heads, block, block + 1, AttentionPass{.queries = false, .keys = true});
  });
  parallel_items(stream, z.rows * z.heads * query_blocks, [&](int64_t i, int thread) {
    const int64_t head = i / query_blocks;
    AttentionRowBackward<T> work = on_row(head / z.heads, thread);
    work.query_block(head % z.heads, query_blocks - 1 - i % query_blocks, 0, key_blocks,
                     AttentionPass{.queries = true, .keys = false});
  });
}

void backward_f32(Stream& stream, const AttentionBackward& args) {
  backward<float>(stream, args);
}
void backward_f64(Stream& stream, const AttentionBackward& args) {
  backward<double>(stream, args);
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(backward_f32);
HWY_EXPORT(backward_f64);

void run(Stream& stream, const AttentionBackward& args) {
  check_attention(args);
  const DType dtype = args.q.dtype();
  TRANSXSSM_CHECK(args.log_sum_exp, "AttentionBackward.log_sum_exp is missing");
  expect(args.d_out, "AttentionBackward.d_out", dtype, args.q.shape());
  expect(args.dq, "AttentionBackward.dq", dtype, args.q.shape());
  expect(args.dk, "AttentionBackward.dk", dtype, args.k.shape());
  expect(args.dv, "AttentionBackward.dv", dtype, args.v.shape());
  if (dtype == DType::f32) {
    HWY_DYNAMIC_DISPATCH(backward_f32)(stream, args);
  } else {
    HWY_DYNAMIC_DISPATCH(backward_f64)(stream, args);
  }
}

}  // namespace transxssm::cpu
#endif
