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
    const bool pairs = kPair<E> == 2, rounded = !std::is_same_v<typename P::Storage, T>;
    take(first, q);
    take(b, q * n);
    take(b_columns, n * z.padded);
    take(b_pairs, pairs ? z.padded * n : 0);
    take(c, q * n);
    take(scores, z.padded * z.padded);
    take(weights, kStripRows * z.padded);
    take(weight_rows, pairs ? kStripRows * z.padded : 0);
    take(factors, kTriangleBlock + z.padded);
    take(x, q * p);
    take(x_pairs, pairs ? z.padded * p : 0);
    take(y, rounded ? q * p : 0);
    take(state, rounded ? p * n : n);
    take(state_columns, n * p);
  }
  int32_t* first;
  E* b;  // rotated, [q,N]
  E* b_columns;
  E* b_pairs;
  E* c;       // rotated, [q,N]
  T* scores;  // C B^T, [q,q]
  T* weights;
  E* weight_rows;
  T* factors;
  E* x;  // [q,P]
  E* x_pairs;
  T* y;      // [q,P]
  T* state;  // widened; when decoding one line of it
  E* state_columns;
};

// States of the chunks: where a caller keeps them rounded, they are carried from chunk to chunk unrounded.
struct ScanStates {
  Tensor entering;  // [B, slots or chunks, H, P, N]
  Tensor carried;   // [B,H,P,N] or empty: carried in `entering`
  int64_t slots;
};

// One head, one chunk: its decays, and the state that leaves it from the one that enters. Chunks go upwards.
template <class P>
void forward_state(const SsdForward& args, const ScanSizes& z, const ScanStates& states,
                   typename P::Real* decays, const ScanForwardBuffers<P>& buffer, int64_t row, int64_t c,
                   int64_t head) {
  using T = typename P::Real;
  using E = typename P::Operand;
  using S = typename P::Storage;
  const SsdInput& in = args.in;
  const int64_t group = head / z.heads_per_group(), size = z.head_dim * z.state_dim;
  const int64_t q = z.length(c), begin = c * z.chunk;
  T* state = states.carried ? address<T>(states.carried, row, head)
                            : address<T>(states.entering, row, c % states.slots, head);
  if (c == 0 && in.initial_state) {
    std::copy_n(address<T>(in.initial_state, row, head), size, state);
  } else if (c == 0) {
    std::fill_n(state, size, T(0));
  }
  if constexpr (!std::is_same_v<S, T>) {
    if (states.carried) pack(state, size, 1, size, address<BFloat16>(states.entering, row, c, head));
  }
  const Decay<T> decay(decays, z, row, head, c);
  find_segments(in.start, row, begin, q, buffer.first);
  compute_decay(in, z, row, head, c, buffer.first, decay);
  const bool last = c + 1 == z.chunks;
  if (last && !args.final_state) return;
  T* next = last             ? address<T>(args.final_state, row, head)
            : states.carried ? state
                             : address<T>(states.entering, row, (c + 1) % states.slots, head);
  const T carry = decay.into[q - 1];
  for (int64_t i = 0; i < size; ++i) next[i] = carry * state[i];
  for (int64_t j = 0; j < q; ++j) {
    rotate(in, j, T(1), decay.out[j] * decay.dt[j], z.state_dim, address<S>(in.b, row, begin + j, group),
           buffer.b + j * z.state_dim);
  }
  E* x_buffer = kPair<E> == 2 ? buffer.x_pairs : buffer.x;
  const Operand<E> x =
      as_pairs<E>(q, z.head_dim, address<S>(in.x, row, begin, head), in.x.stride(1), x_buffer);
  const Operand<E> b = as_pairs<E>(q, z.state_dim, buffer.b, z.state_dim, buffer.b_pairs);
  block_gemm(z.head_dim, z.state_dim, q, x.transposed(), b.data, z.state_dim, next, z.state_dim, true);
  rotate_state(in, z, q, T(-1), next);
}

// Outputs of the heads of one group in one chunk.
template <class P>
void forward_outputs(const SsdForward& args, const ScanSizes& z, const ScanStates& states,
                     typename P::Real* decays, const ScanForwardBuffers<P>& buffer, int64_t row, int64_t c,
                     int64_t group) {
  using T = typename P::Real;
  using E = typename P::Operand;
  using S = typename P::Storage;
  const SsdInput& in = args.in;
  const int64_t q = z.length(c), begin = c * z.chunk, ld = z.padded, n = z.state_dim, p = z.head_dim;
  find_segments(in.start, row, begin, q, buffer.first);
  for (int64_t i = 0; i < q; ++i) {
    rotate(in, i, T(1), T(1), n, address<S>(in.b, row, begin + i, group), buffer.b + i * n);
    rotate(in, i, T(1), scale_of_c<T>(in, row, begin + i), n, address<S>(in.c, row, begin + i, group),
           buffer.c + i * n);
  }
  write_columns(q, n, buffer.b, n, buffer.b_columns, ld);
  lower_scores(0, q, n, buffer.c, buffer.b_columns, ld, buffer.scores);
  const bool has_state = c > 0 || in.initial_state;
  for (int64_t head = group * z.heads_per_group(); head < (group + 1) * z.heads_per_group(); ++head) {
    const Decay<T> decay(decays, z, row, head, c);
    const T skip = in.d_skip ? *address<T>(in.d_skip, head) : T(0);
    T* y = buffer.y;
    int64_t ldy = p;
    if constexpr (std::is_same_v<S, T>) y = address<T>(args.y, row, begin, head), ldy = args.y.stride(1);
    pack(address<S>(in.x, row, begin, head), in.x.stride(1), q, p, buffer.x);
    const E* x_pairs = as_pairs<E>(q, p, buffer.x, p, buffer.x_pairs).data;
    if (has_state) {
      const T* state = chunk_state(z, states.entering, row, c % states.slots, head, buffer.state);
      write_columns(p, n, state, n, buffer.state_columns, p);
      block_gemm(q, p, n, Operand<E>{buffer.c, n}.rows(), buffer.state_columns, p, y, ldy, false);
    }
    for (int64_t i = 0; i < q; ++i) {
      const E* x = buffer.x + i * p;
      T* out = y + i * ldy;
      const T into = decay.into[i];
      for_lanes<T>(p, [&](auto d, int64_t j) HWY_ATTR {
        const auto skipped = hn::Mul(hn::Set(d, skip), load(d, x + j));
        const auto old = has_state ? hn::Mul(hn::Set(d, into), hn::LoadU(d, out + j)) : hn::Zero(d);
        hn::StoreU(has_state ? hn::Add(old, skipped) : skipped, d, out + j);
      });
    }
    for (int64_t strip = 0; strip < q; strip += kStripRows) {
      const int64_t end = std::min(strip + kStripRows, q);
      for (int64_t i = strip; i < end; ++i) {
        prefetch_row(in.x, row, begin + z.chunk + i, head);
        if (head % z.heads_per_group() == 0) {
          prefetch_row(in.b, row, begin + z.chunk + i, group);
          prefetch_row(in.c, row, begin + z.chunk + i, group);
        }
        const T* scores = buffer.scores + i * ld;
        T* weights = buffer.weights + (i - strip) * ld;
        for_decay_row<E>(i, buffer.first, decay, buffer.factors, [&](auto d, int64_t j, auto l) HWY_ATTR {
          const auto weight = hn::Mul(hn::Mul(hn::LoadU(d, scores + j), hn::LoadU(d, decay.dt + j)), l);
          hn::StoreU(hn::IfThenElseZero(hn::Gt(l, hn::Zero(d)), weight), d, weights + j);
        });
      }
      const E* weights = lower_rows<E>(strip, end, buffer.weights, ld, buffer.weight_rows);
      add_lower_product(strip, end, p, weights, ld, x_pairs, y + strip * ldy, ldy);
    }
    if constexpr (!std::is_same_v<S, T>) {
      for (int64_t i = 0; i < q; ++i) pack(y + i * p, p, 1, p, address<S>(args.y, row, begin + i, head));
    }
  }
}

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
  const bool keep_states = !args.chunk_states.empty();
  const bool rounded = keep_states && args.chunk_states.dtype() != DTypeOf<T>::value;
  ScanStates states{args.chunk_states, {}, keep_states ? z.chunks : z.slots};
  Tensor decays;
  const auto layout = [&](Carver& carver) {
    decays = carver.take(DTypeOf<T>::value, {z.rows * z.heads, z.slots * Decay<T>::kArrays * z.padded});
    if (!keep_states)
      states.entering =
          carver.take(DTypeOf<T>::value, {z.rows, states.slots, z.heads, z.head_dim, z.state_dim});
    if (rounded) states.carried = carver.take(DTypeOf<T>::value, {z.rows, z.heads, z.head_dim, z.state_dim});
  };
  Carver total;
  layout(total);
  Scratch scratch(stream, total.used());
  Carver carver = scratch.carver();
  layout(carver);
  const ThreadBuffers<ScanForwardBuffers<P>, ScanSizes> buffers(stream, z);
  if (z.tokens == 1 && !keep_states) {
    parallel_items(stream, z.rows * z.heads, [&](int64_t i, int thread) {
      forward_step<P>(args, z, buffers(thread).state, i / z.heads, i % z.heads);
    });
    return;
  }
  using Buffers = ScanForwardBuffers<P>;
  for_chunks(
      stream, z, true, buffers,
      [&](const Buffers& own, int64_t row, int64_t c, int64_t head) {
        forward_state<P>(args, z, states, decays.data<T>(), own, row, c, head);
      },
      [&](const Buffers& own, int64_t row, int64_t c, int64_t group) {
        forward_outputs<P>(args, z, states, decays.data<T>(), own, row, c, group);
      });
}

void forward_any(Stream& stream, const SsdForward& args) {
  // Scores and states rounded to bf16 here would nearly double the error of a whole model's logits and
  // gradients.
  with_wide_operands(args.in.x.dtype(), [&](auto precision) { forward<decltype(precision)>(stream, args); });
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
