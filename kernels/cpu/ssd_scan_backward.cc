#include "kernels/cpu/ssd_scan.h"
#include "kernels/cpu/ssd_scan_checks.h"
#include "kernels/cpu/targets.h"
#include "kernels/cpu/thread_buffers.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/ssd_scan_backward.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/ssd_backward-inl.h"

HWY_BEFORE_NAMESPACE();
namespace transxssm::cpu::HWY_NAMESPACE {

template <class P>
void backward(Stream& stream, const SsdBackward& args) {
  using T = typename P::Real;
  const ScanSizes z(stream, args.in);
  const ThreadBuffers<ScanBackwardBuffers<P>, ScanSizes> buffers(stream, z);
  const int64_t heads = z.heads_per_group(), size = z.state_size(), all = z.rows * z.chunks * z.heads;
  const Scratch partials_scratch(stream, all * static_cast<int64_t>(sizeof(HeadPartials)));
  auto* partials = static_cast<HeadPartials*>(static_cast<void*>(partials_scratch.data<uint8_t>()));
  const auto index = [&](int64_t row, int64_t c, int64_t head) {
    return (row * z.chunks + c) * z.heads + head;
  };
  std::fill_n(partials, all, HeadPartials());
  if (z.by_group) {
    parallel_items(stream, z.rows * z.groups, [&](int64_t i, int thread) {
      const auto own = buffers(thread);
      const int64_t row = i / z.groups, head = i % z.groups * heads;
      ScanBackward<P> work(args, z, own, row, head, heads);
      work.enter_row();
      for (int64_t c = z.chunks - 1; c >= 0; --c)
        work.chunk(c, partials + index(row, c, head), c > 0 || args.d_initial_state);
      work.leave_row();
    });
  } else {
    const Scratch scratch(stream, all * size * static_cast<int64_t>(sizeof(T)));
    const auto leaving = [&](int64_t row, int64_t c, int64_t head) {
      return scratch.data<T>() + index(row, c, head) * size;
    };
    parallel_items(stream, z.rows * z.heads, [&](int64_t i, int thread) {
      const auto own = buffers(thread);
      const int64_t row = i / z.heads, head = i % z.heads;
      ScanBackward<P> work(args, z, own, row, head, 1);
      work.enter_row();
      for (int64_t c = z.chunks - 1; c >= 0; --c) {
        std::copy_n(work.d_state(0), size, leaving(row, c, head));
        if (c > 0 || args.d_initial_state) work.chunk(c, nullptr, true);
      }
      work.leave_row();
    });
    parallel_items(stream, z.rows * z.chunks * z.groups, [&](int64_t i, int thread) {
      const auto own = buffers(thread);
      const int64_t row = i / z.groups / z.chunks, c = i / z.groups % z.chunks, head = i % z.groups * heads;
      ScanBackward<P> work(args, z, own, row, head, heads);
      for (int64_t h = 0; h < heads; ++h) std::copy_n(leaving(row, c, head + h), size, work.d_state(h));
      work.chunk(c, partials + index(row, c, head), false);
    });
  }
  for (int64_t head = 0; head < z.heads; ++head) {
    HeadPartials sum;
    for (int64_t i = 0; i < z.rows * z.chunks; ++i) {
      const HeadPartials& part = partials[i * z.heads + head];
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
