#include "kernels/cpu/ssd_scan.h"
#include "kernels/cpu/ssd_scan_checks.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/ssd_scan_forward.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/ssd_common-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

// Memory of one thread.
template <class T>
struct ScanForwardBuffers {
  ScanForwardBuffers(Carver& carver, const ScanSizes& z) {
    const auto take = [&](int64_t m, int64_t n) {
      return carver.take(DTypeOf<T>::value, {m, n}).template data<T>();
    };
    first = carver.take(DType::i32, {z.longest}).template data<int32_t>();
    b = take(z.longest, z.state_dim);
    b_transposed = take(z.state_dim, z.padded);
    c = take(z.longest, z.state_dim);
    scores = take(z.padded, z.padded);
    weights = take(kStripRows, z.padded);
    x = take(z.longest, z.head_dim);
    state_transposed = take(z.state_dim, z.head_dim);
  }
  int32_t* first;
  T* b;  // rotated, [q,N]
  T* b_transposed;
  T* c;       // rotated, [q,N]
  T* scores;  // C B^T, [q,q]
  T* weights;
  T* x;  // [q,P]
  T* state_transposed;
};

// One head, one chunk: its decays, and the state that leaves it from the one that enters. Chunks go upwards.
template <class T>
void forward_state(const SsdForward& args, const ScanSizes& z, const Tensor& chunk_states, T* decays,
                   const ScanForwardBuffers<T>& buffer, int64_t row, int64_t c, int64_t head) {
  const SsdInput& in = args.in;
  const int64_t group = head / z.heads_per_group(), size = z.head_dim * z.state_dim;
  const int64_t q = z.length(c), begin = c * z.chunk;
  T* state = address<T>(chunk_states, row, c, head);
  if (c == 0 && in.initial_state) {
    std::copy_n(address<T>(in.initial_state, row, head), size, state);
  } else if (c == 0) {
    std::fill_n(state, size, T(0));
  }
  const Decay<T> decay(decays, z, row, head, c);
  find_segments(in.start, row, begin, q, buffer.first);
  compute_decay(in, z, row, head, c, buffer.first, decay);
  const bool last = c + 1 == z.chunks;
  if (last && !args.final_state) return;
  T* next = last ? address<T>(args.final_state, row, head) : address<T>(chunk_states, row, c + 1, head);
  const T carry = decay.into[q - 1];
  for (int64_t i = 0; i < size; ++i) next[i] = carry * state[i];
  for (int64_t j = 0; j < q; ++j) {
    rotate(in, j, T(1), decay.out[j] * decay.dt[j], z.state_dim, address<T>(in.b, row, begin + j, group),
           buffer.b + j * z.state_dim);
  }
  block_gemm(z.head_dim, z.state_dim, q,
             StridedMatrix<T>{address<T>(in.x, row, begin, head), 1, in.x.stride(1)}, buffer.b, z.state_dim,
             next, z.state_dim, true);
  rotate_state(in, z, q, T(-1), next);
}

// Outputs of the heads of one group in one chunk.
template <class T>
void forward_outputs(const SsdForward& args, const ScanSizes& z, const Tensor& chunk_states, T* decays,
                     const ScanForwardBuffers<T>& buffer, int64_t row, int64_t c, int64_t group) {
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
  const bool has_state = c > 0 || in.initial_state;
  for (int64_t head = group * z.heads_per_group(); head < (group + 1) * z.heads_per_group(); ++head) {
    const Decay<T> decay(decays, z, row, head, c);
    const T skip = in.d_skip ? *address<T>(in.d_skip, head) : T(0);
    T* y = address<T>(args.y, row, begin, head);
    const int64_t ldy = args.y.stride(1);
    pack(address<T>(in.x, row, begin, head), in.x.stride(1), q, p, buffer.x);
    if (has_state) {
      transpose(p, n, address<T>(chunk_states, row, c, head), n, buffer.state_transposed, p);
      block_gemm(q, p, n, StridedMatrix<T>{buffer.c, n, 1}, buffer.state_transposed, p, y, ldy, false);
    }
    for (int64_t i = 0; i < q; ++i) {
      const T* HWY_RESTRICT x = buffer.x + i * p;
      T* HWY_RESTRICT out = y + i * ldy;
      const T into = decay.into[i];
      if (has_state) {
        for (int64_t j = 0; j < p; ++j) out[j] = into * out[j] + skip * x[j];
      } else {
        for (int64_t j = 0; j < p; ++j) out[j] = skip * x[j];
      }
    }
    for (int64_t strip = 0; strip < q; strip += kStripRows) {
      const int64_t end = std::min(strip + kStripRows, q);
      for (int64_t i = strip; i < end; ++i) {
        const T* scores = buffer.scores + i * ld;
        T* weights = buffer.weights + (i - strip) * ld;
        for_decay_row(i, buffer.first, decay, [&](auto d, int64_t j, auto l) HWY_ATTR {
          const auto weight = hn::Mul(hn::Mul(hn::LoadU(d, scores + j), hn::LoadU(d, decay.dt + j)), l);
          hn::StoreU(hn::IfThenElseZero(hn::Gt(l, hn::Zero(d)), weight), d, weights + j);
        });
      }
      add_lower_product(strip, end, p, buffer.weights, ld, buffer.x, y + strip * ldy, ldy);
    }
  }
}

// One token of one head by the recurrence itself: decoding.
template <class T>
void forward_step(const SsdForward& args, const ScanSizes& z, T* line, int64_t row, int64_t head) {
  const SsdInput& in = args.in;
  const int64_t group = head / z.heads_per_group(), zero = 0;
  const double v = *address<T>(in.u, row, zero, head) + *address<T>(in.dt_bias, head);
  const double dt = v > kSoftplusThreshold ? v : std::log1p(std::exp(v));
  const bool reset = !in.initial_state || (in.start && *address<uint8_t>(in.start, row, zero));
  const T decay =
      reset ? T(0)
            : static_cast<T>(std::exp(-std::exp(static_cast<double>(*address<T>(in.a_log, head))) * dt));
  const T scale = scale_of_c<T>(in, row, 0), skip = in.d_skip ? *address<T>(in.d_skip, head) : T(0);
  const T* x = address<T>(in.x, row, zero, head);
  const T* b = address<T>(in.b, row, zero, group);
  const T* c = address<T>(in.c, row, zero, group);
  T* y = address<T>(args.y, row, zero, head);
  for (int64_t p = 0; p < z.head_dim; ++p) {
    const T* old = reset ? b : address<T>(in.initial_state, row, head, p);  // times zero where reset
    T* state = args.final_state ? address<T>(args.final_state, row, head, p) : line;
    const T weight = static_cast<T>(dt) * x[p];
    const T sum = sum_lanes<T>(z.state_dim, [&](auto d, int64_t j) HWY_ATTR {
      const auto kept = hn::Mul(hn::Set(d, decay), hn::LoadU(d, old + j));
      const auto s = hn::MulAdd(hn::Set(d, weight), hn::LoadU(d, b + j), kept);
      hn::StoreU(s, d, state + j);
      return hn::Mul(s, hn::LoadU(d, c + j));
    });
    y[p] = scale * sum + skip * x[p];
    if (args.final_state && in.cos) rotate(in, 1, T(-1), T(1), z.state_dim, state, state);
  }
}

template <class T>
void forward(Stream& stream, const SsdForward& args) {
  const ScanSizes z(args.in);
  const int64_t heads = z.rows * z.heads;
  Carver counter;
  ScanForwardBuffers<T>(counter, z);
  const int64_t thread_bytes = counter.used();
  const bool keep_states = !args.chunk_states.empty();
  const Shape states_shape = {z.rows, z.chunks, z.heads, z.head_dim, z.state_dim};
  const auto shared = [&](Carver& carver, Tensor& decays, Tensor& states, Tensor& threads) {
    decays = carver.take(DTypeOf<T>::value, {heads, z.chunks * Decay<T>::kArrays * z.padded});
    states = keep_states ? args.chunk_states : carver.take(DTypeOf<T>::value, states_shape);
    threads = carver.take(DType::u8, {stream.num_threads(), thread_bytes});
  };
  Tensor decays, states, threads;
  Carver total;
  shared(total, decays, states, threads);
  Scratch scratch(stream, total.used());
  Carver carver = scratch.carver();
  shared(carver, decays, states, threads);
  const auto buffers = [&](int thread) {
    Carver own(static_cast<std::byte*>(threads.raw()) + thread * thread_bytes, thread_bytes);
    return ScanForwardBuffers<T>(own, z);
  };
  if (z.tokens == 1 && !keep_states) {
    parallel_items(stream, heads, [&](int64_t i, int thread) {
      forward_step<T>(args, z, buffers(thread).b, i / z.heads, i % z.heads);
    });
    return;
  }
  const auto state = [&](int thread, int64_t row, int64_t c, int64_t head) {
    forward_state(args, z, states, decays.data<T>(), buffers(thread), row, c, head);
  };
  const auto outputs = [&](int thread, int64_t row, int64_t c, int64_t group) {
    forward_outputs(args, z, states, decays.data<T>(), buffers(thread), row, c, group);
  };
  if (z.by_group(stream)) {
    parallel_items(stream, z.rows * z.groups, [&](int64_t i, int thread) {
      const int64_t row = i / z.groups, group = i % z.groups;
      for (int64_t c = 0; c < z.chunks; ++c) {
        for (int64_t h = 0; h < z.heads_per_group(); ++h)
          state(thread, row, c, group * z.heads_per_group() + h);
        outputs(thread, row, c, group);
      }
    });
    return;
  }
  parallel_items(stream, heads, [&](int64_t i, int thread) {
    for (int64_t c = 0; c < z.chunks; ++c) state(thread, i / z.heads, c, i % z.heads);
  });
  parallel_items(stream, z.rows * z.chunks * z.groups, [&](int64_t i, int thread) {
    const int64_t chunk = i / z.groups;
    outputs(thread, chunk / z.chunks, chunk % z.chunks, i % z.groups);
  });
}

void forward_f32(Stream& stream, const SsdForward& args) {
  forward<float>(stream, args);
}
void forward_f64(Stream& stream, const SsdForward& args) {
  forward<double>(stream, args);
}

}  // namespace transxssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace transxssm::cpu {

HWY_EXPORT(forward_f32);
HWY_EXPORT(forward_f64);

void run(Stream& stream, const SsdForward& args) {
  const SsdInput& in = args.in;
  const DType dtype = in.x.dtype();
  check_ssd_input(in, dtype);
  const int64_t rows = in.x.size(0), tokens = in.x.size(1), heads = in.x.size(2), p = in.x.size(3),
                n = in.b.size(3);
  const Shape state = {rows, heads, p, n};
  check_ssd_state(in.initial_state, "SsdInput.initial_state", dtype, state);
  check_ssd_state(args.final_state, "SsdForward.final_state", dtype, state);
  check_ssd_state(args.chunk_states, "SsdForward.chunk_states", dtype,
                  {rows, ssd_num_chunks(tokens, in.chunk), heads, p, n});
  expect(args.y, "SsdForward.y", dtype, in.x.shape());
  TRANSXSSM_CHECK(tokens > 0, "SsdInput.x has no tokens");
  if (dtype == DType::f32) {
    HWY_DYNAMIC_DISPATCH(forward_f32)(stream, args);
  } else {
    HWY_DYNAMIC_DISPATCH(forward_f64)(stream, args);
  }
}

}  // namespace transxssm::cpu
#endif
