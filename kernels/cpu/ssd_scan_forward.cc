#include "kernels/cpu/ssd_scan.h"
#include "kernels/cpu/ssd_scan_checks.h"
#include "kernels/cpu/targets.h"
#include "kernels/cpu/thread_buffers.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/ssd_scan_forward.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/ssd_common-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

// Memory of one thread. E: operands of products, in the layouts of kernels/cpu/block_gemm_bf16.h.
template <class P>
struct ScanForwardBuffers {
  using T = typename P::Real;
  using E = typename P::Operand;
  ScanForwardBuffers(Carver& carver, const ScanSizes& z) {
    const auto take = [&]<class Element>(Element*& to, int64_t size) {
      to = carver.take(DTypeOf<Element>::value, {size}).template data<Element>();
    };
    const int64_t q = z.longest, n = z.state_dim, p = z.head_dim;
    // Where an operand is the matrix itself, and where y is written in place, their buffers take nothing.
    const bool rounded = !std::is_same_v<typename P::Storage, T>;
    take(first, q);
    take(decay, Decay<T>::kArrays * z.padded);
    take(b, q * n);
    take(b_columns, n * z.padded);
    take(weighted_b, z.padded * n);
    take(c, q * n);
    take(scores, z.padded * z.padded);
    take(weights, z.padded * z.padded);
    take(factors, kTriangleBlock + z.padded);
    take(x, rounded ? z.padded * p : 0);
    take(y, rounded ? q * p : 0);
    take(states, z.heads_per_group() * n * p);
    take(line, n * p);
  }
  int32_t* first;
  T* decay;
  T* b;  // rotated, [q,N]
  T* b_columns;
  E* weighted_b;
  T* c;       // rotated, [q,N]
  T* scores;  // C B^T, [q,q]
  E* weights;
  T* factors;
  E* x;       // [q,P]
  T* y;       // [q,P]
  T* states;  // of the group's heads, [N,P]
  T* line;    // of a state; a state transposed
};

// Heads [head, head + heads) of one group in one row; their states are in the thread's memory, [N,P], in the
// frame of the chunk's first token.
template <class P>
class ScanForward {
 public:
  using T = typename P::Real;
  using E = typename P::Operand;
  using S = typename P::Storage;
  using Buffers = ScanForwardBuffers<P>;

  ScanForward(const SsdForward& args, const ScanSizes& z, const Buffers& buffer, int64_t row, int64_t head,
              int64_t heads)
      : args_(args),
        in_(args.in),
        z_(z),
        buffer_(buffer),
        row_(row),
        head_(head),
        heads_(heads),
        group_(head / z.heads_per_group()) {}

  T* state(int64_t h) const { return buffer_.states + h * z_.state_size(); }

  void enter_row() {
    for (int64_t h = 0; h < heads_; ++h) {
      if (in_.initial_state) {
        transpose(z_.head_dim, z_.state_dim, address<T>(in_.initial_state, row_, head_ + h), z_.state_dim,
                  state(h), z_.head_dim);
      } else {
        std::fill_n(state(h), z_.state_size(), T(0));
      }
    }
  }

  void leave_row() {
    for (int64_t h = 0; h < heads_ && args_.final_state; ++h) {
      transpose(z_.state_dim, z_.head_dim, state(h), z_.head_dim,
                address<T>(args_.final_state, row_, head_ + h), z_.state_dim);
    }
  }

  // The states that enter chunk c, for the backward.
  void save_states(int64_t c) {
    if (!args_.chunk_states) return;
    for (int64_t h = 0; h < heads_; ++h) {
      const bool rounded = args_.chunk_states.dtype() != DTypeOf<T>::value;
      T* to = rounded ? buffer_.line : address<T>(args_.chunk_states, row_, c, head_ + h);
      transpose(z_.state_dim, z_.head_dim, state(h), z_.head_dim, to, z_.state_dim);
      if constexpr (std::is_same_v<T, float>) {
        if (!rounded) continue;
        auto* states = address<BFloat16>(args_.chunk_states, row_, c, head_ + h);
        write_rows<E>(z_.head_dim, z_.state_dim, to, states, z_.state_dim);
      }
    }
  }

  // Chunk c: its outputs where asked for, and the states that leave it unless nobody needs them.
  void chunk(int64_t c, bool outputs, bool leave) {
    for (int64_t b = 0; b < z_.blocks(c); ++b) {
      const ScanBlock block(z_, c, b);
      const bool move = leave || b + 1 < z_.blocks(c);
      find_segments(in_.start, row_, block.begin, block.length, buffer_.first);
      rotate_rows<S>(
          in_, z_, block, in_.b, row_, group_, [](int64_t) { return T(1); }, buffer_.b);
      if (outputs) group_scores(block);
      for (int64_t h = 0; h < heads_; ++h) {
        look_ahead(block, c, b, h, outputs);
        const Decay<T> decay(buffer_.decay, z_.padded);
        compute_decay(in_, block, row_, head_ + h, buffer_.first, decay);
        const Operand<E> x =
            as_pairs<E>(block.length, z_.head_dim, address<S>(in_.x, row_, block.begin, head_ + h),
                        in_.x.stride(1), buffer_.x);
        if (outputs) write_outputs(block, h, decay, x, c > 0 || b > 0 || in_.initial_state);
        if (!move) continue;
        const Operand<E> b_pairs =
            as_weighted_pairs<E>(block.length, z_.state_dim, buffer_.b, decay.weight, buffer_.weighted_b);
        product<E, T>(z_.state_dim, z_.head_dim, block.length, b_pairs.transposed(), x, state(h),
                      decay.into[block.length - 1], nullptr, ahead_);
      }
    }
    for (int64_t h = 0; h < heads_ && leave && in_.cos; ++h) next_frame(z_.length(c), state(h));
  }

 private:
  // The rows of the block that this thread comes to next.
  void look_ahead(const ScanBlock& block, int64_t c, int64_t b, int64_t h, bool outputs) {
    const bool whole_row = z_.by_group || !outputs;
    const bool last = whole_row ? block.begin + block.length == z_.tokens : b + 1 == z_.blocks(c);
    const int64_t begin = !last ? block.begin + block.length : whole_row ? 0 : c * z_.chunk;
    int64_t head = last ? head_ + heads_ : head_, row = row_;
    if (head == z_.heads) head = 0, ++row;
    ahead_.clear();
    ahead_.add(in_.x, row, begin, head + h);
    if (outputs) ahead_.add(args_.y, row, begin, head + h, true);
    if (whole_row && b + 1 == z_.blocks(c) && args_.chunk_states)
      ahead_.add_states(args_.chunk_states, row, begin / z_.chunk, head + h, true);
    if (h > 0) return;
    ahead_.add(in_.b, row, begin, head / z_.heads_per_group());
    if (outputs) ahead_.add(in_.c, row, begin, head / z_.heads_per_group());
  }

  // Moves a state to the frame of the next chunk.
  void next_frame(int64_t distance, T* state) {
    const T* cos = address<T>(in_.cos, distance);
    const T* sin = address<T>(in_.sin, distance);
    const int64_t half = z_.state_dim / 2 * z_.head_dim;
    for (int64_t j = 0; j < z_.state_dim / 2; ++j) {
      T* line = state + j * z_.head_dim;
      for_lanes<T>(z_.head_dim, [&](auto d, int64_t i) HWY_ATTR {
        const auto x = hn::LoadU(d, line + i), y = hn::LoadU(d, line + half + i);
        const auto c = hn::Set(d, cos[j]), s = hn::Set(d, sin[j]);
        hn::StoreU(hn::MulAdd(y, s, hn::Mul(x, c)), d, line + i);
        hn::StoreU(hn::NegMulAdd(x, s, hn::Mul(y, c)), d, line + half + i);
      });
    }
  }

  void group_scores(const ScanBlock& block) {
    const int64_t n = z_.state_dim;
    const auto scale = [&](int64_t i) { return scale_of_c<T>(in_, row_, block.begin + i); };
    rotate_rows<S>(in_, z_, block, in_.c, row_, group_, scale, buffer_.c);
    transpose(block.length, n, buffer_.b, n, buffer_.b_columns, z_.padded);
    lower_scores(block.length, n, Operand<T>{buffer_.c, n}, buffer_.b_columns, z_.padded, buffer_.scores,
                 ahead_);
  }

  void write_outputs(const ScanBlock& block, int64_t h, const Decay<T>& decay, const Operand<E>& x,
                     bool has_state) {
    const int64_t head = head_ + h, q = block.length, ld = z_.padded, p = z_.head_dim;
    S* to = address<S>(args_.y, row_, block.begin, head);
    T* y = buffer_.y;
    int64_t ldy = p;
    if constexpr (std::is_same_v<S, T>) y = to, ldy = args_.y.stride(1);
    for (int64_t i = 0; i < q; ++i) {
      if (i % kTriangleBlock == 0) ahead_.ask(kRowsAsked);
      const T* scores = buffer_.scores + i * ld;
      E* weights = buffer_.weights + i * ld;
      for_decay_row<E>(i, buffer_.first, decay, buffer_.factors, [&](auto d, int64_t j, auto l) HWY_ATTR {
        const auto weight = hn::Mul(hn::Mul(hn::LoadU(d, scores + j), hn::LoadU(d, decay.dt + j)), l);
        store_operand(hn::IfThenElseZero(hn::Gt(l, hn::Zero(d)), weight), d, weights + j);
      });
    }
    if (has_state) {
      for (int64_t i = 0; i < q; i += kTriangleBlock) {
        block_gemm(std::min(kTriangleBlock, q - i), p, z_.state_dim,
                   Operand<T>{buffer_.c + i * z_.state_dim, z_.state_dim}.rows(), state(h), p, y + i * ldy,
                   ldy, T(0), decay.into + i);
        ahead_.ask(2 * kRowsAsked);
      }
    }
    lower_product(q, p, buffer_.weights, ld, x, y, ldy, T(has_state), ahead_);
    if (in_.d_skip) {
      const T skip = *address<T>(in_.d_skip, head);
      for (int64_t i = 0; i < q; ++i) {
        const S* token = address<S>(in_.x, row_, block.begin + i, head);
        T* out = y + i * ldy;
        for_lanes<T>(p, [&](auto d, int64_t j) HWY_ATTR {
          hn::StoreU(hn::MulAdd(hn::Set(d, skip), load(d, token + j), hn::LoadU(d, out + j)), d, out + j);
        });
      }
    }
    if constexpr (!std::is_same_v<S, T>) write_rows<E>(q, p, y, to, args_.y.stride(1));
  }

  const SsdForward& args_;
  const SsdInput& in_;
  const ScanSizes& z_;
  const Buffers& buffer_;
  const int64_t row_, head_, heads_, group_;
  RowsAhead ahead_;
};

// One token of one head by the recurrence itself: decoding.
template <class P>
void forward_step(const SsdForward& args, const ScanSizes& z, typename P::Real* line, int64_t row,
                  int64_t head) {
  using T = typename P::Real;
  using S = typename P::Storage;
  const SsdInput& in = args.in;
  const int64_t group = head / z.heads_per_group(), zero = 0;
  const double v = *address<T>(in.u, row, zero, head) + *address<T>(in.dt_bias, head);
  const double dt = v > kSoftplusThreshold ? v : std::log1p(std::exp(v));
  const bool reset = !in.initial_state || (in.start && *address<uint8_t>(in.start, row, zero));
  const T decay = static_cast<T>(std::exp(-std::exp(static_cast<double>(*address<T>(in.a_log, head))) * dt));
  const T scale = scale_of_c<T>(in, row, 0), skip = in.d_skip ? *address<T>(in.d_skip, head) : T(0);
  const S* x = address<S>(in.x, row, zero, head);
  const S* b = address<S>(in.b, row, zero, group);
  const S* c = address<S>(in.c, row, zero, group);
  S* y = address<S>(args.y, row, zero, head);
  for (int64_t p = 0; p < z.head_dim; ++p) {
    const T* old = reset ? line : address<T>(in.initial_state, row, head, p);
    T* state = args.final_state ? address<T>(args.final_state, row, head, p) : line;
    const T x_p = widened<T>(x[p]);
    const T weight = static_cast<T>(dt) * x_p;
    const T sum = sum_lanes<T>(z.state_dim, [&](auto d, int64_t j) HWY_ATTR {
      const auto kept = reset ? hn::Zero(d) : hn::Mul(hn::Set(d, decay), hn::LoadU(d, old + j));
      const auto s = hn::MulAdd(hn::Set(d, weight), load(d, b + j), kept);
      hn::StoreU(s, d, state + j);
      return hn::Mul(s, load(d, c + j));
    });
    round_to(scale * sum + skip * x_p, y + p);
    if (args.final_state && in.cos) rotate(in, 1, T(-1), T(1), z.state_dim, state, state);
  }
}

template <class P>
void forward(Stream& stream, const SsdForward& args) {
  using T = typename P::Real;
  const ScanSizes z(stream, args.in);
  const ThreadBuffers<ScanForwardBuffers<P>, ScanSizes> buffers(stream, z);
  if (z.tokens == 1 && !args.chunk_states) {
    parallel_items(stream, z.rows * z.heads, [&](int64_t i, int thread) {
      forward_step<P>(args, z, buffers(thread).line, i / z.heads, i % z.heads);
    });
    return;
  }
  const int64_t heads = z.heads_per_group(), size = z.state_size();
  if (z.by_group) {
    parallel_items(stream, z.rows * z.groups, [&](int64_t i, int thread) {
      const auto own = buffers(thread);
      ScanForward<P> work(args, z, own, i / z.groups, i % z.groups * heads, heads);
      work.enter_row();
      for (int64_t c = 0; c < z.chunks; ++c) {
        work.save_states(c);
        work.chunk(c, true, c + 1 < z.chunks || args.final_state);
      }
      work.leave_row();
    });
    return;
  }
  const Scratch scratch(stream, z.rows * z.chunks * z.heads * size * static_cast<int64_t>(sizeof(T)));
  const auto entering = [&](int64_t row, int64_t c, int64_t head) {
    return scratch.data<T>() + ((row * z.chunks + c) * z.heads + head) * size;
  };
  parallel_items(stream, z.rows * z.heads, [&](int64_t i, int thread) {
    const auto own = buffers(thread);
    const int64_t row = i / z.heads, head = i % z.heads;
    ScanForward<P> work(args, z, own, row, head, 1);
    work.enter_row();
    for (int64_t c = 0; c < z.chunks; ++c) {
      work.save_states(c);
      std::copy_n(work.state(0), size, entering(row, c, head));
      if (c + 1 < z.chunks || args.final_state) work.chunk(c, false, true);
    }
    work.leave_row();
  });
  parallel_items(stream, z.rows * z.chunks * z.groups, [&](int64_t i, int thread) {
    const auto own = buffers(thread);
    const int64_t row = i / z.groups / z.chunks, c = i / z.groups % z.chunks, head = i % z.groups * heads;
    ScanForward<P> work(args, z, own, row, head, heads);
    for (int64_t h = 0; h < heads; ++h) std::copy_n(entering(row, c, head + h), size, work.state(h));
    work.chunk(c, true, false);
  });
}

void forward_any(Stream& stream, const SsdForward& args) {
  // C B^T and the state's outputs keep f32 operands: rounded to bf16 as well they would nearly double the
  // error of a whole model's logits and gradients.
  with_precision(args.in.x.dtype(), [&](auto precision) { forward<decltype(precision)>(stream, args); });
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(forward_any);

void run(Stream& stream, const SsdForward& args) {
  const SsdInput& in = args.in;
  const DType dtype = in.x.dtype(), real = arithmetic_dtype(dtype);
  check_ssd_input(in);
  const int64_t rows = in.x.size(0), tokens = in.x.size(1), heads = in.x.size(2), p = in.x.size(3),
                n = in.b.size(3);
  const Shape state = {rows, heads, p, n};
  check_ssd_state(in.initial_state, "SsdInput.initial_state", real, state);
  check_ssd_state(args.final_state, "SsdForward.final_state", real, state);
  check_chunk_states(args.chunk_states, "SsdForward.chunk_states", in);
  expect(args.y, "SsdForward.y", dtype, in.x.shape());
  TRANSXSSM_CHECK(tokens > 0, "SsdInput.x has no tokens");
  HWY_DYNAMIC_DISPATCH(forward_any)(stream, args);
}

}  // namespace transxssm::cpu
#endif
