// The state-space scan on GPUs, backward: each block takes a head from the last step of a segment to the
// first, with the gradient of the state in fp32 registers. Bytes that must be moved, per token and head with
// P = N = 64, G = H, chunks of 64 and bf16 chunk states: x, dy, dx 384, b, c, db, dc 512, u, du 8, states 128
// = 1032; with N = 128: 1672. Where heads share a group, every slice's db and dc pass through memory in f32
// and are summed in order. Chunks longer than 64 tokens need the states between their steps formed again.
#include "kernels/cpu/rows.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ssd_backward_step.h"
#include "kernels/cuda/ssd_launch.h"

namespace transxssm::cuda {

namespace ssd {

// Block (head and tile of the head dim, segment, row). Two blocks on a multiprocessor fill each other's waits
// for memory: one tile of each kind keeps them within its shared memory.
template <int N>
__global__ void __launch_bounds__(kThreads, 2) ssd_backward_kernel(BackwardArgs args) {
  auto& shared = shared_memory<BackwardShared<N>>();
  const ScanArgs& in = args.in;
  if (threadIdx.x == 0) shared.place = Place(in);
  sync_block();
  const int warp = warp_index();
  const int first = static_cast<int>(blockIdx.y) * in.steps_per_segment;
  const int end = first + in.steps_per_segment < in.steps ? first + in.steps_per_segment : in.steps;

  const auto load_c = [&](int step_index) {
    const Place place = shared.place;
    const Step step(in, step_index);
    load_tile(shared.c, in.c.at(place.row, step.begin, place.group), in.c.token, step.length);
  };
  const auto load_rest = [&](int step_index) {
    const Place place = shared.place;
    const Step step(in, step_index);
    load_tile(shared.dy, args.dy.at(place.row, step.begin, place.head) + place.tile * kWidth, args.dy.token,
              step.length);
    load_state<N>(args.entering,
                  args.entering.offset(place.row, step_index, place.head) + place.tile * kWidth * N,
                  shared.state);
    load_tile(shared.b, in.b.at(place.row, step.begin, place.group), in.b.token, step.length);
    load_tile(shared.x, in.x.at(place.row, step.begin, place.head) + place.tile * kWidth, in.x.token,
              step.length);
  };
  StateGradient<N> d_state;
  {
    const Place place = shared.place;
    const int64_t at = args.leaving.offset(place.row, place.segment, place.head);
    read_gradient<N>(args.leaving, at + place.tile * kWidth * N, d_state);
  }
  load_c(end - 1);
  load_rest(end - 1);
  commit_copies();

  for (int s = end - 1; s >= first; --s) {
    const Step step(in, s);
    TokenPair tokens;
    if (warp == 0) tokens.fetch(in, shared.place, s);
    shared.frame.load(in, step.length);
    wait_copies<0>();
    sync_block();
    if (warp == 0) compute_decay(tokens, step.length, HeadDecay(in, shared.place.head), shared.decay);
    rotate_rows<N>(&shared.b, &shared.c, in, shared.place.row, step);
    sync_block();

    if (in.cos != nullptr) turn_gradient<N>(shared.frame, d_state);
    form_scores<N>(shared);
    sync_block();
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      HalfGradient<N> dc = {};
      const float through = warp_sum(form_dc<N>(shared, d_state, half, dc));
      if (lane_index() == 0 && half == 0) shared.through[warp] = through;
      write_rotated<N>(in, shared.place, step, true, half, dc, args.dc);
    }
    sync_block();
    write_transposed<N>(d_state, shared.d_state());
    sync_warp();
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      HalfGradient<N> db = {};
      form_db<N>(shared, half, db);
      write_rotated<N>(in, shared.place, step, false, half, db, args.db);
    }
    add_outputs<N>(shared.c, shared.dy, shared.decay, d_state);
    sync_block();
    if (s > first) load_c(s - 1);

    float dx[4][2][4] = {};
    form_dx<N>(shared, dx);
    {
      const Place place = shared.place;
      const float skip = in.d_skip == nullptr ? 0.0f : in.d_skip[place.head];
      bf16* to = args.dx.at(place.row, step.begin, place.head) + place.tile * kWidth;
      const float d_skip = warp_sum(write_dx<N>(shared, skip, dx, to, args.dx.token, step.length));
      if (lane_index() == 0) shared.d_skip[warp] = s == end - 1 ? d_skip : shared.d_skip[warp] + d_skip;
    }
    sync_block();
    if (s > first) load_rest(s - 1);
    commit_copies();
    if (warp == 0) {
      const Place place = shared.place;
      float* du = args.du.at(place.row, step.begin, place.slice);
      finish_tokens<N>(shared, HeadDecay(in, place.head).a, step, s == end - 1, du, args.du.token);
    }
  }
  const Place place = shared.place;
  if (args.d_initial.data != nullptr && place.segment == 0) {
    const int64_t at = args.d_initial.offset(place.row, 0, place.head);
    write_gradient<N>(args.d_initial, at + place.tile * kWidth * N, d_state);
  }
  if (threadIdx.x == 0) {
    const int64_t block = (int64_t{place.row} * in.segments + place.segment) * gridDim.x + place.slice;
    float* to = args.parameters + 3 * block;
    to[0] = shared.dt_bias, to[1] = shared.a_log;
    to[2] = shared.d_skip[0] + shared.d_skip[1] + shared.d_skip[2] + shared.d_skip[3];
  }
}

// The gradients of states that segments form on their own, from the second segment on.
template <int N>
__global__ void __launch_bounds__(kThreads, 2) ssd_backward_states_kernel(BackwardArgs args) {
  auto& shared = shared_memory<BackwardStatesShared<N>>();
  const ScanArgs& in = args.in;
  const Place place(in, 1);
  const int warp = warp_index();
  const int first = place.segment * in.steps_per_segment;
  const int end = first + in.steps_per_segment < in.steps ? first + in.steps_per_segment : in.steps;
  const int64_t tile_offset = int64_t{place.tile} * kWidth * N;
  const HeadDecay head(in, place.head);
  const auto load = [&](int step_index, int stage) {
    const Step step(in, step_index);
    load_tile(shared.c[stage], in.c.at(place.row, step.begin, place.group), in.c.token, step.length);
    load_tile(shared.dy[stage], args.dy.at(place.row, step.begin, place.head) + place.tile * kWidth,
              args.dy.token, step.length);
  };
  StateGradient<N> d_state = {};
  float carry = 1.0f;
  TokenPair tokens;
  if (warp == 0) tokens.fetch(in, place, end - 1);
  load(end - 1, 0);
  commit_copies();
  for (int s = end - 1, stage = 0; s >= first; --s, stage ^= 1) {
    const Step step(in, s);
    wait_copies<0>();
    sync_block();
    if (s > first) load(s - 1, stage ^ 1);
    commit_copies();
    if (warp == 0) {
      compute_decay(tokens, step.length, head, shared.decay);
      if (s > first) tokens.fetch(in, place, s - 1);
    }
    shared.frame.load(in, step.length);
    rotate_rows<N>(nullptr, &shared.c[stage], in, place.row, step);
    sync_block();
    if (in.cos != nullptr) turn_gradient<N>(shared.frame, d_state);
    add_outputs<N>(shared.c[stage], shared.dy[stage], shared.decay, d_state);
    carry *= shared.decay.carry();
  }
  write_gradient<N>(args.leaving, args.leaving.offset(place.row, place.segment - 1, place.head) + tile_offset,
                    d_state);
  if (threadIdx.x == 0)
    args.carry[(int64_t{place.row} * in.segments + place.segment) * gridDim.x + place.slice] = carry;
}

template <int N>
void backward(Stream& stream, const SsdBackward& args) {
  const SsdInput& in = args.in;
  const ScanPlan plan(in, segments_for(in, 2));
  const int64_t heads = in.x.size(2), tokens = in.x.size(1), p = in.x.size(3);
  const bool long_chunks = plan.args.steps_per_chunk > 1, sum_slices = plan.slices > in.b.size(2);
  const bool sum_tiles = plan.args.tiles > 1;
  BackwardArgs whole{.in = plan.args,
                     .dy = heads_of<const bf16>(args.dy),
                     .dx = heads_of<bf16>(args.dx),
                     .db = {heads_of<bf16>(args.db), nullptr},
                     .dc = {heads_of<bf16>(args.dc), nullptr},
                     .entering = chunk_states_of(args.chunk_states),
                     .leaving = states_of(args.d_final_state),
                     .d_initial = states_of(args.d_initial_state),
                     .du = heads_of<float>(args.du),
                     .parameters = nullptr,
                     .carry = nullptr};
  Tensor step_states, du_tiles;
  SegmentStates states;
  const auto carve = [&](Carver& carver) {
    states = SegmentStates(carver, plan);
    const Shape slices = {plan.rows, tokens, plan.slices, N};
    if (sum_slices) whole.db.slices = carver.take(DType::f32, slices).data<float>();
    if (sum_slices) whole.dc.slices = carver.take(DType::f32, slices).data<float>();
    if (sum_tiles) du_tiles = carver.take(DType::f32, {plan.rows, tokens, plan.slices});
    if (long_chunks) step_states = carver.take(DType::bf16, {plan.rows, plan.args.steps, heads, p, N});
    whole.parameters = carver.take(DType::f32, {plan.rows, plan.segments, plan.slices, 3}).data<float>();
  };
  Carver count;
  carve(count);
  Scratch scratch(stream, count.used());
  Carver carver = scratch.carver();
  carve(carver);

  if (long_chunks) {
    form_step_states(stream, in, whole.entering, chunk_states_of(step_states));
    whole.entering = chunk_states_of(step_states);
  }
  if (plan.segments > 1) {
    BackwardArgs part = whole;
    part.leaving = states.view(0);
    part.carry = states.carry;
    TRANSXSSM_LAUNCH(ssd_backward_states_kernel<N>,
                     LaunchShape{.grid = grid_of(plan.slices, plan.segments - 1, plan.rows),
                                 .block = dim3(kThreads),
                                 .shared_bytes = sizeof(BackwardStatesShared<N>)},
                     queue_of(stream), part);
    pass_states(stream, plan, states, whole.leaving, true);
    whole.leaving = states.view(0);
  }
  if (sum_tiles) whole.du = heads_of<float>(du_tiles);
  const LaunchShape shape{.grid = grid_of(plan.slices, plan.segments, plan.rows),
                          .block = dim3(kThreads),
                          .shared_bytes = sizeof(BackwardShared<N>)};
  TRANSXSSM_LAUNCH(ssd_backward_kernel<N>, shape, queue_of(stream), whole);
  if (sum_slices) {
    sum_group(stream, plan, whole.db.slices, whole.db.rows);
    sum_group(stream, plan, whole.dc.slices, whole.dc.rows);
  }
  if (sum_tiles) sum_du(stream, plan, whole.du.data, heads_of<float>(args.du));
  sum_parameters(stream, plan, whole.parameters, args.d_dt_bias.data<float>(), args.d_a_log.data<float>(),
                 args.d_d_skip.data<float>());
}

}  // namespace ssd

void run(Stream& stream, const SsdBackward& args) {
  const SsdInput& in = args.in;
  ssd::check_input(in);
  const int64_t rows = in.x.size(0), tokens = in.x.size(1), heads = in.x.size(2), p = in.x.size(3),
                n = in.b.size(3);
  const Shape state = {rows, heads, p, n};
  TRANSXSSM_CHECK(args.chunk_states, "SsdBackward needs the chunk states");
  ssd::check_state(args.chunk_states, "SsdBackward.chunk_states",
                   {rows, ssd_num_chunks(tokens, in.chunk), heads, p, n}, true);
  ssd::check_state(args.d_final_state, "SsdBackward.d_final_state", state, false);
  ssd::check_state(args.d_initial_state, "SsdBackward.d_initial_state", state, false);
  ssd::check_rows(args.dy, "SsdBackward.dy", in.x.shape());
  ssd::check_rows(args.dx, "SsdBackward.dx", in.x.shape());
  ssd::check_rows(args.db, "SsdBackward.db", in.b.shape());
  ssd::check_rows(args.dc, "SsdBackward.dc", in.c.shape());
  TRANSXSSM_CHECK(args.du.dtype() == DType::f32 && args.du.shape() == in.u.shape(), "SsdBackward.du is {} {}",
                  dtype_name(args.du.dtype()), args.du.shape().to_string());
  cpu::expect(args.d_dt_bias, "SsdBackward.d_dt_bias", DType::f32, {heads});
  cpu::expect(args.d_a_log, "SsdBackward.d_a_log", DType::f32, {heads});
  cpu::expect_or_empty(args.d_d_skip, "SsdBackward.d_d_skip", DType::f32, {heads});
  if (n == 64)
    ssd::backward<64>(stream, args);
  else
    ssd::backward<128>(stream, args);
}

}  // namespace transxssm::cuda
