// The derivation, with V = dY X^T, G = C B^T, L the decays, U = dG * G (all on one head and chunk, C and B
// rotated):
//   dG_ij = V_ij L_ij dt_j      dC = dG B + exp(g) (dY S)      dB = dG^T C + exp(g_last - g) dt (X dS)
//   d(dt X) = (G L)^T dY + exp(g_last - g) (B dS^T)            dS_before = exp(g_last) dS + (exp(g) dY)^T C
//   dg = row sums of U - column sums of U + ..., both of the same U: the terms that cancel do so exactly.
#include "kernels/cpu/ssd_scan.h"
#include "kernels/cpu/ssd_scan_checks.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/ssd_scan_backward.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/ssd_common-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

// Memory of one thread.
template <class T>
struct ScanBackwardBuffers {
  ScanBackwardBuffers(Carver& carver, const ScanSizes& z) {
    const auto take = [&](int64_t m, int64_t n) {
      return carver.take(DTypeOf<T>::value, {m, n}).template data<T>();
    };
    const int64_t q = z.longest, n = z.state_dim, p = z.head_dim;
    first = carver.take(DType::i32, {q}).template data<int32_t>();
    dg = carver.take(DType::f64, {q}).template data<double>();
    b = take(q, n);
    b_transposed = take(n, z.padded);
    c = take(q, n);
    db = take(q, n);
    dc = take(q, n);
    product = take(q, n);
    scores = take(z.padded, z.padded);
    weights = take(kStripRows, z.padded);
    d_scores = take(kStripRows, z.padded);
    columns = take(1, z.padded);
    sigmoid = take(1, z.padded);
    x = take(q, p);
    x_transposed = take(p, z.padded);
    dy = take(q, p);
    dx = take(q, p);
    d_state_transposed = take(n, p);
  }
  int32_t* first;
  double* dg;
  T* b;  // rotated
  T* b_transposed;
  T* c;  // rotated
  T* db;
  T* dc;
  T* product;
  T* scores;    // G
  T* weights;   // strip of G L
  T* d_scores;  // strip of V, then dG
  T* columns;   // column sums of a strip of U
  T* sigmoid;   // derivative of softplus
  T* x;
  T* x_transposed;
  T* dy;
  T* dx;  // gradient of dt X
  T* d_state_transposed;
};

// Sums over the tokens of one head and chunk; the totals are formed from them in order.
struct HeadPartials {
  double dt_bias, a_log, d_skip;
};

// One head, one chunk: its decays, and from the gradient of the state that leaves it (moved to the chunk's
// frame, in place) that of the state that enters. Chunks go downwards.
template <class T>
void backward_state(const SsdBackward& args, const ScanSizes& z, const Tensor& d_states, T* decays,
                    const ScanBackwardBuffers<T>& buffer, int64_t row, int64_t c, int64_t head) {
  const SsdInput& in = args.in;
  const int64_t group = head / z.heads_per_group(), size = z.head_dim * z.state_dim;
  const int64_t q = z.length(c), begin = c * z.chunk;
  T* d_state = address<T>(d_states, row, c, head);
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
  T* before = c == 0 ? address<T>(args.d_initial_state, row, head) : address<T>(d_states, row, c - 1, head);
  const T carry = decay.into[q - 1];
  for (int64_t i = 0; i < size; ++i) before[i] = carry * d_state[i];
  for (int64_t i = 0; i < q; ++i) {
    rotate(in, i, T(1), decay.into[i] * scale_of_c<T>(in, row, begin + i), z.state_dim,
           address<T>(in.c, row, begin + i, group), buffer.c + i * z.state_dim);
  }
  block_gemm(z.head_dim, z.state_dim, q,
             StridedMatrix<T>{address<T>(args.dy, row, begin, head), 1, args.dy.stride(1)}, buffer.c,
             z.state_dim, before, z.state_dim, true);
}

// Gradients through the states that enter and leave: sets dx, adds to dc, db (sets them for the first head of
// a group) and dg.
template <class T>
void backward_through_states(const ScanSizes& z, const Decay<T>& decay, const ScanBackwardBuffers<T>& buffer,
                             int64_t q, const T* state, const T* d_state, bool first_head) {
  const int64_t n = z.state_dim, p = z.head_dim;
  const auto add = [&](T weight, const T* HWY_RESTRICT from, T* HWY_RESTRICT to) {
    if (first_head) {
      for (int64_t j = 0; j < n; ++j) to[j] = weight * from[j];
    } else {
      for (int64_t j = 0; j < n; ++j) to[j] += weight * from[j];
    }
  };
  const auto dot = [](int64_t count, const T* a, const T* b) {
    return static_cast<double>(sum_lanes<T>(count, [&](auto d, int64_t j) HWY_ATTR {
      return hn::Mul(hn::LoadU(d, a + j), hn::LoadU(d, b + j));
    }));
  };
  block_gemm(q, n, p, StridedMatrix<T>{buffer.dy, p, 1}, state, n, buffer.product, n, false);
  for (int64_t i = 0; i < q; ++i) {
    const T* product = buffer.product + i * n;
    buffer.dg[i] += static_cast<double>(decay.into[i]) * dot(n, product, buffer.c + i * n);
    add(decay.into[i], product, buffer.dc + i * n);
  }
  block_gemm(q, n, p, StridedMatrix<T>{buffer.x, p, 1}, d_state, n, buffer.product, n, false);
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
  transpose(p, n, d_state, n, buffer.d_state_transposed, p);
  block_gemm(q, p, n, StridedMatrix<T>{buffer.b, n, 1}, buffer.d_state_transposed, p, buffer.dx, p, false);
  for (int64_t j = 0; j < q; ++j) {
    for (int64_t i = 0; i < p; ++i) buffer.dx[j * p + i] *= decay.out[j];
  }
}

// Gradients through the scores of tokens [strip, end) of one chunk: adds to dx, dc, db and dg.
template <class T>
void backward_through_scores(const ScanSizes& z, const Decay<T>& decay, const ScanBackwardBuffers<T>& buffer,
                             int64_t strip, int64_t end) {
  const int64_t n = z.state_dim, p = z.head_dim, ld = z.padded;
  lower_scores(strip, end, p, buffer.dy + strip * p, buffer.x_transposed, ld, buffer.d_scores);
  std::fill_n(buffer.columns, z.padded, T(0));
  for (int64_t i = strip; i < end; ++i) {
    const T* scores = buffer.scores + i * ld;
    T* weights = buffer.weights + (i - strip) * ld;
    T* d_scores = buffer.d_scores + (i - strip) * ld;
    const hn::CappedTag<T, kTriangleBlock> tag;
    auto sum = hn::Zero(tag);
    for_decay_row(i, buffer.first, decay, [&](auto d, int64_t j, auto l) HWY_ATTR {
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
  add_lower_product(strip, end, n, buffer.d_scores, ld, buffer.b, buffer.dc + strip * n, n);
  add_lower_transposed_product(strip, end, n, buffer.d_scores, ld, buffer.c, buffer.db);
  add_lower_transposed_product(strip, end, p, buffer.weights, ld, buffer.dy, buffer.dx);
}

// From the gradient of dt X and of g to those of x, u and the parameters of the head.
template <class T>
HeadPartials backward_finish(const SsdBackward& args, const ScanSizes& z, const Decay<T>& decay,
                             const ScanBackwardBuffers<T>& buffer, int64_t row, int64_t c, int64_t head) {
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
    const T* HWY_RESTRICT x = buffer.x + t * p;
    const T* HWY_RESTRICT dy = buffer.dy + t * p;
    const T* HWY_RESTRICT d_scaled = buffer.dx + t * p;
    T* HWY_RESTRICT dx = address<T>(args.dx, row, begin + t, head);
    const T dt = decay.dt[t];
    const double d_dt = static_cast<double>(sum_lanes<T>(p, [&](auto d, int64_t j) HWY_ATTR {
      return hn::Mul(hn::LoadU(d, x + j), hn::LoadU(d, d_scaled + j));
    }));
    if (args.d_d_skip) {
      partials.d_skip += static_cast<double>(sum_lanes<T>(
          p, [&](auto d, int64_t j) HWY_ATTR { return hn::Mul(hn::LoadU(d, x + j), hn::LoadU(d, dy + j)); }));
    }
    for (int64_t j = 0; j < p; ++j) dx[j] = dt * d_scaled[j] + skip * dy[j];
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
template <class T>
void backward_chunk(const SsdBackward& args, const ScanSizes& z, const Tensor& d_states, T* decays,
                    HeadPartials* partials, const ScanBackwardBuffers<T>& buffer, int64_t row, int64_t c,
                    int64_t group) {
  const SsdInput& in = args.in;
  const int64_t q = z.length(c), begin = c * z.chunk, ld = z.padded, n = z.state_dim, p = z.head_dim;
  find_segments(in.start, row, begin, q, buffer.first);
  for (int64_t i = 0; i < q; ++i) {
    rotate(in, i, T(1), T(1), n, address<T>(in.b, row, begin + i, group), buffer.b + i * n);
    rotate(in, i, T(1), scale_of_c<T>(in, row, begin + i), n, address<T>(in.c, row, begin + i, group),
           buffer.c + i * n);
  }
  transpose(q, n, buffer.b, n, buffer.b_transposed, ld);
  lower_scores(0, q, n, buffer.c, buffer.b_transposed, ld, buffer.scores);
  const int64_t first_head = group * z.heads_per_group();
  for (int64_t head = first_head; head < first_head + z.heads_per_group(); ++head) {
    const Decay<T> decay(decays, z, row, head, c);
    pack(address<T>(in.x, row, begin, head), in.x.stride(1), q, p, buffer.x);
    pack(address<T>(args.dy, row, begin, head), args.dy.stride(1), q, p, buffer.dy);
    transpose(q, p, buffer.x, p, buffer.x_transposed, ld);
    std::fill_n(buffer.dg, q, 0.0);
    backward_through_states(z, decay, buffer, q, address<T>(args.chunk_states, row, c, head),
                            address<T>(d_states, row, c, head), head == first_head);
    for (int64_t strip = 0; strip < q; strip += kStripRows) {
      backward_through_scores(z, decay, buffer, strip, std::min(strip + kStripRows, q));
    }
    partials[(row * z.chunks + c) * z.heads + head] = backward_finish(args, z, decay, buffer, row, c, head);
  }
  for (int64_t i = 0; i < q; ++i) {
    rotate(in, i, T(-1), T(1), n, buffer.db + i * n, address<T>(args.db, row, begin + i, group));
    rotate(in, i, T(-1), scale_of_c<T>(in, row, begin + i), n, buffer.dc + i * n,
           address<T>(args.dc, row, begin + i, group));
  }
}

template <class T>
void backward(Stream& stream, const SsdBackward& args) {
  const ScanSizes z(args.in);
  const int64_t heads = z.rows * z.heads, chunks = z.rows * z.chunks;
  Carver counter;
  ScanBackwardBuffers<T>(counter, z);
  const int64_t thread_bytes = counter.used();
  Tensor decays, d_states, partials, threads;
  const auto layout = [&](Carver& carver) {
    decays = carver.take(DTypeOf<T>::value, {heads, z.chunks * Decay<T>::kArrays * z.padded});
    d_states = carver.take(DTypeOf<T>::value, {z.rows, z.chunks, z.heads, z.head_dim, z.state_dim});
    partials = carver.take(DType::u8, {chunks, z.heads, static_cast<int64_t>(sizeof(HeadPartials))});
    threads = carver.take(DType::u8, {stream.num_threads(), thread_bytes});
  };
  Carver total;
  layout(total);
  Scratch scratch(stream, total.used());
  Carver carver = scratch.carver();
  layout(carver);
  const auto buffers = [&](int thread) {
    Carver own(static_cast<std::byte*>(threads.raw()) + thread * thread_bytes, thread_bytes);
    return ScanBackwardBuffers<T>(own, z);
  };
  HeadPartials* sums = static_cast<HeadPartials*>(partials.raw());
  const auto state = [&](int thread, int64_t row, int64_t c, int64_t head) {
    backward_state(args, z, d_states, decays.data<T>(), buffers(thread), row, c, head);
  };
  const auto rest = [&](int thread, int64_t row, int64_t c, int64_t group) {
    backward_chunk(args, z, d_states, decays.data<T>(), sums, buffers(thread), row, c, group);
  };
  if (z.by_group(stream)) {
    parallel_items(stream, z.rows * z.groups, [&](int64_t i, int thread) {
      const int64_t row = i / z.groups, group = i % z.groups;
      for (int64_t c = z.chunks - 1; c >= 0; --c) {
        for (int64_t h = 0; h < z.heads_per_group(); ++h)
          state(thread, row, c, group * z.heads_per_group() + h);
        rest(thread, row, c, group);
      }
    });
  } else {
    parallel_items(stream, heads, [&](int64_t i, int thread) {
      for (int64_t c = z.chunks - 1; c >= 0; --c) state(thread, i / z.heads, c, i % z.heads);
    });
    parallel_items(stream, chunks * z.groups, [&](int64_t i, int thread) {
      const int64_t chunk = i / z.groups;
      rest(thread, chunk / z.chunks, chunk % z.chunks, i % z.groups);
    });
  }
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

void backward_f32(Stream& stream, const SsdBackward& args) {
  backward<float>(stream, args);
}
void backward_f64(Stream& stream, const SsdBackward& args) {
  backward<double>(stream, args);
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(backward_f32);
HWY_EXPORT(backward_f64);

void run(Stream& stream, const SsdBackward& args) {
  const SsdInput& in = args.in;
  const DType dtype = in.x.dtype();
  check_ssd_input(in, dtype);
  const int64_t rows = in.x.size(0), tokens = in.x.size(1), heads = in.x.size(2), p = in.x.size(3),
                n = in.b.size(3);
  const Shape state = {rows, heads, p, n};
  TRANSXSSM_CHECK(tokens > 0 && args.chunk_states && args.dx,
                  "SsdBackward needs tokens and the chunk states");
  check_ssd_state(args.chunk_states, "SsdBackward.chunk_states", dtype,
                  {rows, ssd_num_chunks(tokens, in.chunk), heads, p, n});
  check_ssd_state(args.d_final_state, "SsdBackward.d_final_state", dtype, state);
  check_ssd_state(args.d_initial_state, "SsdBackward.d_initial_state", dtype, state);
  expect(args.dy, "SsdBackward.dy", dtype, in.x.shape());
  expect(args.dx, "SsdBackward.dx", dtype, in.x.shape());
  expect(args.db, "SsdBackward.db", dtype, in.b.shape());
  expect(args.dc, "SsdBackward.dc", dtype, in.c.shape());
  TRANSXSSM_CHECK(args.du.dtype() == dtype && args.du.shape() == in.u.shape(), "SsdBackward.du is {} {}",
                  dtype_name(args.du.dtype()), args.du.shape().to_string());
  expect(args.d_dt_bias, "SsdBackward.d_dt_bias", dtype, {heads});
  expect(args.d_a_log, "SsdBackward.d_a_log", dtype, {heads});
  expect_or_empty(args.d_d_skip, "SsdBackward.d_d_skip", dtype, {heads});
  if (dtype == DType::f32) {
    HWY_DYNAMIC_DISPATCH(backward_f32)(stream, args);
  } else {
    HWY_DYNAMIC_DISPATCH(backward_f64)(stream, args);
  }
}

}  // namespace transxssm::cpu
#endif
