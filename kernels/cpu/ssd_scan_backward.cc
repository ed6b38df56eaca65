// The derivation, with V = dY X^T, G = C B^T, L the decays, U = dG * G (all on one head and chunk, C and B
// rotated):
//   dG_ij = V_ij L_ij dt_j      dC = dG B + exp(g) (dY S)      dB = dG^T C + exp(g_last - g) dt (X dS)
//   d(dt X) = (G L)^T dY + exp(g_last - g) (B dS^T)            dS_before = exp(g_last) dS + (exp(g) dY)^T C
//   dg = row sums of U - column sums of U + ..., both of the same U: the terms that cancel do so exactly.
#include "kernels/cpu/ssd_scan.h"
#include "kernels/cpu/ssd_scan_checks.h"
#include "kernels/cpu/targets.h"
#include "kernels/cpu/thread_buffers.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/ssd_scan_backward.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/ssd_common-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

// Memory of one thread. E: operands of products, in the layouts of kernels/cpu/block_gemm_bf16.h.
template <class P>
struct ScanBackwardBuffers {
  using T = typename P::Real;
  using E = typename P::Operand;
  ScanBackwardBuffers(Carver& carver, const ScanSizes& z) {
    const auto take = [&]<class Element>(Element*& to, int64_t size) {
      to = carver.take(DTypeOf<Element>::value, {size}).template data<Element>();
    };
    const int64_t q = z.longest, n = z.state_dim, p = z.head_dim, ld = z.padded;
    // Where an operand is the matrix itself its buffer takes nothing.
    const bool pairs = kPair<E> == 2, rounded = !std::is_same_v<typename P::Storage, T>;
    take(first, q);
    take(dg, q);
    take(b, q * n);
    take(b_pairs, pairs ? ld * n : 0);
    take(b_columns, n * ld);
    take(c, q * n);
    take(c_pairs, pairs ? ld * n : 0);
    take(db, q * n);
    take(dc, q * n);
    take(product, q * n);
    take(scores, ld * ld);
    take(weights, kStripRows * ld);
    take(weight_pairs, pairs ? kStripRows * ld : 0);
    take(d_scores, kStripRows * ld);
    take(d_score_rows, pairs ? kStripRows * ld : 0);
    take(d_score_pairs, pairs ? kStripRows * ld : 0);
    take(factors, kTriangleBlock + ld);
    take(columns, ld);
    take(sigmoid, ld);
    take(x, q * p);
    take(x_columns, p * ld);
    take(dy, q * p);
    take(dy_pairs, pairs ? ld * p : 0);
    take(dx, q * p);
    take(state, rounded ? p * n : 0);
    take(state_pairs, pairs ? p * n : 0);
    take(d_state_columns, n * p);
  }
  int32_t* first;
  double* dg;
  E* b;  // rotated
  E* b_pairs;
  E* b_columns;
  E* c;  // rotated
  E* c_pairs;
  T* db;
  T* dc;
  T* product;
  T* scores;   // G
  T* weights;  // strip of G L
  E* weight_pairs;
  T* d_scores;  // strip of V, then dG
  E* d_score_rows;
  E* d_score_pairs;
  T* factors;
  T* columns;  // column sums of a strip of U
  T* sigmoid;  // derivative of softplus
  E* x;
  E* x_columns;
  E* dy;
  E* dy_pairs;
  T* dx;     // gradient of dt X
  T* state;  // widened
  E* state_pairs;
  E* d_state_columns;
};

// Sums over the tokens of one head and chunk; the totals are formed from them in order.
struct HeadPartials {
  double dt_bias, a_log, d_skip;
};

// One head, one chunk: its decays, and from the gradient of the state that leaves it (moved to the chunk's
// frame, in place) that of the state that enters. Chunks go downwards.
template <class P>
void backward_state(const SsdBackward& args, const ScanSizes& z, const Tensor& d_states,
                    typename P::Real* decays, const ScanBackwardBuffers<P>& buffer, int64_t row, int64_t c,
                    int64_t head) {
  using T = typename P::Real;
  using E = typename P::Operand;
  using S = typename P::Storage;
  const SsdInput& in = args.in;
  const int64_t group = head / z.heads_per_group(), size = z.head_dim * z.state_dim;
  const int64_t q = z.length(c), begin = c * z.chunk;
  T* d_state = address<T>(d_states, row, c % z.slots, head);
  if (c + 1 == z.chunks && args.d_final_state) {
    std::copy_n(address<T>(args.d_final_state, row, head), size, d_state);
  } else if (c + 1 == z.chunks) {
    std::fill_n(d_state, size, T(0));
  }
  const Decay<T> decay(decays, z, row, head, c);
  find_segments(in.start, row, begin, q, buffer.first);
  compute_decay(in, z, row, head, c, buffer.first, decay);
  rotate_state(in, z, q, T(1), d_state);
  if (c == 0 && !args.d_initial_state) return;
  T* before = c == 0 ? address<T>(args.d_initial_state, row, head)
                     : address<T>(d_states, row, (c - 1) % z.slots, head);
  const T carry = decay.into[q - 1];
  for (int64_t i = 0; i < size; ++i) before[i] = carry * d_state[i];
  for (int64_t i = 0; i < q; ++i) {
    rotate(in, i, T(1), decay.into[i] * scale_of_c<T>(in, row, begin + i), z.state_dim,
           address<S>(in.c, row, begin + i, group), buffer.c + i * z.state_dim);
  }
  E* dy_buffer = kPair<E> == 2 ? buffer.dy_pairs : buffer.dy;
  const Operand<E> dy =
      as_pairs<E>(q, z.head_dim, address<S>(args.dy, row, begin, head), args.dy.stride(1), dy_buffer);
  const Operand<E> c_pairs = as_pairs<E>(q, z.state_dim, buffer.c, z.state_dim, buffer.c_pairs);
  block_gemm(z.head_dim, z.state_dim, q, dy.transposed(), c_pairs.data, z.state_dim, before, z.state_dim,
             true);
}

// Gradients through the states that enter and leave: sets dx, adds to dc, db (sets them for the first head of
// a group) and dg.
template <class P, class T = typename P::Real>
void backward_through_states(const ScanSizes& z, const Decay<T>& decay, const ScanBackwardBuffers<P>& buffer,
                             int64_t q, const T* state, const T* d_state, bool first_head) {
  using E = typename P::Operand;
  const int64_t n = z.state_dim, p = z.head_dim;
  const auto add = [&](T weight, const T* HWY_RESTRICT from, T* HWY_RESTRICT to) {
    if (first_head) {
      for (int64_t j = 0; j < n; ++j) to[j] = weight * from[j];
    } else {
      for (int64_t j = 0; j < n; ++j) to[j] += weight * from[j];
    }
  };
  const auto dot = [](int64_t count, const T* a, const auto* b) {
    return static_cast<double>(sum_lanes<T>(
        count, [&](auto d, int64_t j) HWY_ATTR { return hn::Mul(hn::LoadU(d, a + j), load(d, b + j)); }));
  };
  const Operand<E> state_pairs = as_pairs<E>(p, n, state, n, buffer.state_pairs);
  block_gemm(q, n, p, Operand<E>{buffer.dy, p}.rows(), state_pairs.data, n, buffer.product, n, false);
  for (int64_t i = 0; i < q; ++i) {
    const T* product = buffer.product + i * n;
    buffer.dg[i] += static_cast<double>(decay.into[i]) * dot(n, product, buffer.c + i * n);
    add(decay.into[i], product, buffer.dc + i * n);
  }
  const Operand<E> d_state_pairs = as_pairs<E>(p, n, d_state, n, buffer.state_pairs);
  block_gemm(q, n, p, Operand<E>{buffer.x, p}.rows(), d_state_pairs.data, n, buffer.product, n, false);
  double total = static_cast<double>(decay.into[q - 1]) * dot(p * n, state, d_state);
  for (int64_t j = 0; j < q; ++j) {
    const T* product = buffer.product + j * n;
    const T weight = decay.out[j] * decay.dt[j];
    add(weight, product, buffer.db + j * n);
    if (j + 1 == q) break;  // the last token leaves without decay
    const double k = static_cast<double>(weight) * dot(n, product, buffer.b + j * n);
    total += k;
    buffer.dg[j] -= k;
  }
  buffer.dg[q - 1] += total;
  write_columns(p, n, d_state, n, buffer.d_state_columns, p);
  block_gemm(q, p, n, Operand<E>{buffer.b, n}.rows(), buffer.d_state_columns, p, buffer.dx, p, false);
  for (int64_t j = 0; j < q; ++j) {
    for (int64_t i = 0; i < p; ++i) buffer.dx[j * p + i] *= decay.out[j];
  }
}

// Right operands of the products with scores, in `pairs`.
template <class E>
struct RightOperands {
  const E *b, *c, *dy;
};

// Gradients through the scores of tokens [strip, end) of one chunk: adds to dx, dc, db and dg. Calls prefetch
// for each of the tokens.
template <class P, class Fn, class T = typename P::Real>
void backward_through_scores(const ScanSizes& z, const Decay<T>& decay, const ScanBackwardBuffers<P>& buffer,
                             const RightOperands<typename P::Operand>& operands, int64_t strip, int64_t end,
                             Fn&& prefetch) {
  using E = typename P::Operand;
  const int64_t n = z.state_dim, p = z.head_dim, ld = z.padded;
  lower_scores(strip, end, p, buffer.dy + strip * p, buffer.x_columns, ld, buffer.d_scores);
  std::fill_n(buffer.columns, z.padded, T(0));
  for (int64_t i = strip; i < end; ++i) {
    prefetch(i);
    const T* scores = buffer.scores + i * ld;
    T* weights = buffer.weights + (i - strip) * ld;
    T* d_scores = buffer.d_scores + (i - strip) * ld;
    const hn::CappedTag<T, kTriangleBlock> tag;
    auto sum = hn::Zero(tag);
    for_decay_row<E>(i, buffer.first, decay, buffer.factors, [&](auto d, int64_t j, auto l) HWY_ATTR {
      const auto seen = hn::Gt(l, hn::Zero(d));
      const auto score = hn::IfThenElseZero(seen, hn::LoadU(d, scores + j));
      const auto v = hn::Mul(hn::LoadU(d, d_scores + j), hn::LoadU(d, decay.dt + j));
      const auto d_score = hn::IfThenElseZero(seen, hn::Mul(v, l));
      hn::StoreU(hn::Mul(score, l), d, weights + j);
      hn::StoreU(d_score, d, d_scores + j);
      // The diagonal does not decay.
      const auto off_diagonal = hn::Ne(hn::Iota(d, static_cast<T>(j)), hn::Set(d, static_cast<T>(i)));
      const auto u = hn::IfThenElseZero(off_diagonal, hn::Mul(d_score, score));
      sum = hn::Add(sum, u);
      hn::StoreU(hn::Add(u, hn::LoadU(d, buffer.columns + j)), d, buffer.columns + j);
    });
    buffer.dg[i] += static_cast<double>(hn::GetLane(hn::SumOfLanes(tag, sum)));
  }
  for (int64_t j = 0; j < end; ++j) buffer.dg[j] -= static_cast<double>(buffer.columns[j]);
  const E* rows = lower_rows<E>(strip, end, buffer.d_scores, ld, buffer.d_score_rows);
  add_lower_product(strip, end, n, rows, ld, operands.b, buffer.dc + strip * n, n);
  const E* pairs = lower_pairs<E>(strip, end, buffer.d_scores, ld, buffer.d_score_pairs);
  add_lower_transposed_product(strip, end, n, pairs, ld, operands.c, buffer.db);
  const E* weights = lower_pairs<E>(strip, end, buffer.weights, ld, buffer.weight_pairs);
  add_lower_transposed_product(strip, end, p, weights, ld, operands.dy, buffer.dx);
}

// From the gradient of dt X and of g to those of x, u and the parameters of the head.
template <class P, class T = typename P::Real>
HeadPartials backward_finish(const SsdBackward& args, const ScanSizes& z, const Decay<T>& decay,
                             const ScanBackwardBuffers<P>& buffer, int64_t row, int64_t c, int64_t head) {
  using E = typename P::Operand;
  const SsdInput& in = args.in;
  const int64_t q = z.length(c), begin = c * z.chunk, p = z.head_dim;
  const T skip = in.d_skip ? *address<T>(in.d_skip, head) : T(0), bias = *address<T>(in.dt_bias, head);
  for (int64_t i = 0; i < q; ++i) buffer.sigmoid[i] = *address<T>(in.u, row, begin + i, head) + bias;
  for_lanes<T>(q, [&](auto d, int64_t i) HWY_ATTR {
    const auto v = hn::LoadU(d, buffer.sigmoid + i), threshold = hn::Set(d, T(kSoftplusThreshold));
    const auto e = hn::Exp(d, hn::Min(v, threshold)), one = hn::Set(d, T(1));
    hn::StoreU(hn::IfThenElse(hn::Gt(v, threshold), one, hn::Div(e, hn::Add(e, one))), d, buffer.sigmoid + i);
  });
  HeadPartials partials{0, 0, 0};
  const double a = -std::exp(static_cast<double>(*address<T>(in.a_log, head)));
  double d_decay = 0;  // gradient of a dt: the sum of dg over this and the later tokens of the document
  for (int64_t t = q - 1; t >= 0; --t) {
    const E* x = buffer.x + t * p;
    const E* dy = buffer.dy + t * p;
    const T* d_scaled = buffer.dx + t * p;
    auto* dx = address<typename P::Storage>(args.dx, row, begin + t, head);
    prefetch_row(in.x, row, begin - z.chunk + t, head);
    prefetch_row(args.dy, row, begin - z.chunk + t, head);
    const T dt = decay.dt[t];
    const double d_dt = static_cast<double>(sum_lanes<T>(
        p, [&](auto d, int64_t j) HWY_ATTR { return hn::Mul(load(d, x + j), hn::LoadU(d, d_scaled + j)); }));
    if (args.d_d_skip) {
      partials.d_skip += static_cast<double>(sum_lanes<T>(
          p, [&](auto d, int64_t j) HWY_ATTR { return hn::Mul(load(d, x + j), load(d, dy + j)); }));
    }
    for_lanes<T>(p, [&](auto d, int64_t j) HWY_ATTR {
      const auto scaled = hn::Mul(hn::Set(d, dt), hn::LoadU(d, d_scaled + j));
      store(hn::Add(scaled, hn::Mul(hn::Set(d, skip), load(d, dy + j))), d, dx + j);
    });
    d_decay += buffer.dg[t];
    if (buffer.first[t] == t) d_decay = 0;  // nothing before the start of a document decays into it
    const double du = (d_dt + a * d_decay) * static_cast<double>(buffer.sigmoid[t]);
    *address<T>(args.du, row, begin + t, head) = static_cast<T>(du);
    partials.dt_bias += du;
    partials.a_log += a * static_cast<double>(dt) * d_decay;
  }
  return partials;
}

// Gradients of the heads of one group in one chunk; those of b and c are summed in the order of the heads.
template <class P>
void backward_chunk(const SsdBackward& args, const ScanSizes& z, const Tensor& d_states,
                    typename P::Real* decays, HeadPartials* partials, const ScanBackwardBuffers<P>& buffer,
                    int64_t row, int64_t c, int64_t group) {
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
  RightOperands<E> operands{as_pairs<E>(q, n, buffer.b, n, buffer.b_pairs).data,
                            as_pairs<E>(q, n, buffer.c, n, buffer.c_pairs).data,
                            {}};
  const int64_t first_head = group * z.heads_per_group();
  for (int64_t head = first_head; head < first_head + z.heads_per_group(); ++head) {
    const Decay<T> decay(decays, z, row, head, c);
    pack(address<S>(in.x, row, begin, head), in.x.stride(1), q, p, buffer.x);
    pack(address<S>(args.dy, row, begin, head), args.dy.stride(1), q, p, buffer.dy);
    write_columns(q, p, buffer.x, p, buffer.x_columns, ld);
    operands.dy = as_pairs<E>(q, p, buffer.dy, p, buffer.dy_pairs).data;
    std::fill_n(buffer.dg, q, 0.0);
    const T* state = chunk_state(z, args.chunk_states, row, c, head, buffer.state);
    backward_through_states(z, decay, buffer, q, state, address<T>(d_states, row, c % z.slots, head),
                            head == first_head);
    for (int64_t strip = 0; strip < q; strip += kStripRows) {
      const int64_t end = std::min(strip + kStripRows, q);
      backward_through_scores(z, decay, buffer, operands, strip, end, [&](int64_t i) {
        prefetch_row<true>(args.dx, row, begin + i, head);
        if (head != first_head) return;
        prefetch_row(in.b, row, begin - z.chunk + i, group);
        prefetch_row(in.c, row, begin - z.chunk + i, group);
      });
    }
    partials[(row * z.chunks + c) * z.heads + head] = backward_finish(args, z, decay, buffer, row, c, head);
  }
  for (int64_t i = 0; i < q; ++i) {
    rotate(in, i, T(-1), T(1), n, buffer.db + i * n, address<S>(args.db, row, begin + i, group));
    rotate(in, i, T(-1), scale_of_c<T>(in, row, begin + i), n, buffer.dc + i * n,
           address<S>(args.dc, row, begin + i, group));
  }
}

template <class P>
void backward(Stream& stream, const SsdBackward& args) {
  using T = typename P::Real;
  const ScanSizes z(stream, args.in);
  const int64_t chunks = z.rows * z.chunks;
  Tensor decays, d_states, partials;
  const auto layout = [&](Carver& carver) {
    decays = carver.take(DTypeOf<T>::value, {z.rows * z.heads, z.slots * Decay<T>::kArrays * z.padded});
    d_states = carver.take(DTypeOf<T>::value, {z.rows, z.slots, z.heads, z.head_dim, z.state_dim});
    partials = carver.take(DType::u8, {chunks, z.heads, static_cast<int64_t>(sizeof(HeadPartials))});
  };
  Carver total;
  layout(total);
  Scratch scratch(stream, total.used());
  Carver carver = scratch.carver();
  layout(carver);
  const ThreadBuffers<ScanBackwardBuffers<P>, ScanSizes> buffers(stream, z);
  HeadPartials* sums = static_cast<HeadPartials*>(partials.raw());
  using Buffers = ScanBackwardBuffers<P>;
  for_chunks(
      stream, z, false, buffers,
      [&](const Buffers& own, int64_t row, int64_t c, int64_t head) {
        backward_state<P>(args, z, d_states, decays.data<T>(), own, row, c, head);
      },
      [&](const Buffers& own, int64_t row, int64_t c, int64_t group) {
        backward_chunk<P>(args, z, d_states, decays.data<T>(), sums, own, row, c, group);
      });
  for (int64_t head = 0; head < z.heads; ++head) {
    HeadPartials sum{0, 0, 0};
    for (int64_t i = 0; i < chunks; ++i) {
      const HeadPartials& part = sums[i * z.heads + head];
      sum.dt_bias += part.dt_bias;
      sum.a_log += part.a_log;
      sum.d_skip += part.d_skip;
    }
    *address<T>(args.d_dt_bias, head) += static_cast<T>(sum.dt_bias);
    *address<T>(args.d_a_log, head) += static_cast<T>(sum.a_log);
    if (args.d_d_skip) *address<T>(args.d_d_skip, head) += static_cast<T>(sum.d_skip);
  }
}

void backward_any(Stream& stream, const SsdBackward& args) {
  with_precision(args.in.x.dtype(), [&](auto precision) { backward<decltype(precision)>(stream, args); });
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(backward_any);

void run(Stream& stream, const SsdBackward& args) {
  const SsdInput& in = args.in;
  const DType dtype = in.x.dtype(), real = arithmetic_dtype(dtype);
  check_ssd_input(in);
  const int64_t rows = in.x.size(0), tokens = in.x.size(1), heads = in.x.size(2), p = in.x.size(3),
                n = in.b.size(3);
  const Shape state = {rows, heads, p, n};
  TRANSXSSM_CHECK(tokens > 0 && args.chunk_states && args.dx,
                  "SsdBackward needs tokens and the chunk states");
  check_chunk_states(args.chunk_states, "SsdBackward.chunk_states", in);
  check_ssd_state(args.d_final_state, "SsdBackward.d_final_state", real, state);
  check_ssd_state(args.d_initial_state, "SsdBackward.d_initial_state", real, state);
  expect(args.dy, "SsdBackward.dy", dtype, in.x.shape());
  expect(args.dx, "SsdBackward.dx", dtype, in.x.shape());
  expect(args.db, "SsdBackward.db", dtype, in.b.shape());
  expect(args.dc, "SsdBackward.dc", dtype, in.c.shape());
  TRANSXSSM_CHECK(args.du.dtype() == real && args.du.shape() == in.u.shape(), "SsdBackward.du is {} {}",
                  dtype_name(args.du.dtype()), args.du.shape().to_string());
  expect(args.d_dt_bias, "SsdBackward.d_dt_bias", real, {heads});
  expect(args.d_a_log, "SsdBackward.d_a_log", real, {heads});
  expect_or_empty(args.d_d_skip, "SsdBackward.d_d_skip", real, {heads});
  HWY_DYNAMIC_DISPATCH(backward_any)(stream, args);
}

}  // namespace transxssm::cpu
#endif
