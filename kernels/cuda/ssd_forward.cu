// The state-space scan on GPUs, forward. Bytes that must be moved, per token and head with P = N = 64, G = H,
// chunks of 64 and bf16 chunk states: x 128, b 128, c 128, u 4, y 128, states 128 = 644; with N = 128: 1028.
// Rows and heads that do not fill the GPU are cut into segments: then the states between them are formed
// first, which reads x and b once more (256 and 384 bytes).
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ssd_forward.h"
#include "kernels/cuda/ssd_launch.h"

namespace transxssm::cuda {

namespace ssd {

// Block (head and tile of the head dim, segment, row). Without outputs: the states between segments, or
// between the steps of a chunk.
template <int N, bool kOutputs>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<N>)
    ssd_forward_kernel(ForwardArgs args) {
  auto& shared = shared_memory<ForwardShared<N, kOutputs>>();
  const ScanArgs& in = args.in;
  const Place place(in);
  const int first = place.segment * in.steps_per_segment;
  const int end = first + in.steps_per_segment < in.steps ? first + in.steps_per_segment : in.steps;
  const int64_t tile_offset = int64_t{place.tile} * kWidth * N;
  const HeadDecay head(in, place.head);

  const auto load = [&](int step_index, int stage) {
    const Step step(in, step_index);
    load_tile(shared.b[stage], in.b.at(place.row, step.begin, place.group), in.b.token, step.length);
    load_tile(shared.x[stage], in.x.at(place.row, step.begin, place.head) + place.tile * kWidth, in.x.token,
              step.length);
    if constexpr (kOutputs)
      load_tile(shared.c[stage], in.c.at(place.row, step.begin, place.group), in.c.token, step.length);
  };
  float state[N / 8][4];
  read_rows<N>(args.entering, args.entering.offset(place.row, place.segment, place.head) + tile_offset,
               state);
  float carry = 1.0f;
  TokenPair tokens;
  if (warp_index() == 0) tokens.fetch(in, place, first);
  load(first, 0);
  commit_copies();

  for (int s = first, stage = 0; s < end; ++s, stage ^= 1) {
    const Step step(in, s);
    if (args.between.data != nullptr && s % args.steps_between == 0) {
      const int64_t at = args.between.offset(place.row, s / args.steps_between, place.head);
      write_rows<N>(args.between, at + tile_offset, state);
    }
    wait_copies<0>();
    sync_block();
    if (s + 1 < end) load(s + 1, stage ^ 1);
    commit_copies();
    if (warp_index() == 0) {
      compute_decay(tokens, step.length, head, shared.decay);
      if (s + 1 < end) tokens.fetch(in, place, s + 1);
    }
    shared.frame.load(in, step.length);
    Tile<kTokens, N>* c = nullptr;
    Tile<kTokens, kTokens>* weights = nullptr;
    if constexpr (kOutputs) c = &shared.c[stage], weights = &shared.weights;
    rotate_rows<N>(&shared.b[stage], c, in, place.row, step);
    sync_block();

    float y[4][2][4] = {};
    if constexpr (kOutputs) {
      float scores[4][2][4] = {};
      multiply_state<N>(shared.b[stage], *c, shared.decay, state, scores, y);
      write_weights(shared.decay, scores, *weights);
      sync_block();
    }
    multiply_tokens<N, kOutputs>(shared.b[stage], shared.x[stage], weights, shared.decay, state, y);
    if (in.cos != nullptr) turn_rows<N>(shared.frame, state);
    carry *= shared.decay.carry();
    if constexpr (kOutputs) {
      bf16* to = args.y.at(place.row, step.begin, place.head) + place.tile * kWidth;
      const float skip = in.d_skip == nullptr ? 0.0f : in.d_skip[place.head];
      write_outputs(shared.x[stage], skip, y, to, args.y.token, step.length);
    }
  }
  if (args.leaving.data != nullptr && place.segment >= args.first_leaving)
    write_rows<N>(args.leaving, args.leaving.offset(place.row, place.segment, place.head) + tile_offset,
                  state);
  if (args.carry != nullptr && threadIdx.x == 0)
    args.carry[(int64_t{place.row} * in.segments + place.segment) * gridDim.x + place.slice] = carry;
}

template <int N, bool kOutputs>
void launch_forward(Stream& stream, const ForwardArgs& args, int64_t rows, int64_t segments, int64_t slices) {
  TRANSXSSM_LAUNCH(ssd_forward_kernel<N, kOutputs>,
                   LaunchShape{.grid = grid_of(slices, segments, rows),
                               .block = dim3(kThreads),
                               .shared_bytes = sizeof(ForwardShared<N, kOutputs>)},
                   queue_of(stream), args);
}

template <int N>
void forward(Stream& stream, const SsdForward& args) {
  const ScanPlan plan(args.in, segments_for(args.in, kBlocksPerMultiprocessor<N>));
  ForwardArgs whole{.in = plan.args,
                    .y = heads_of<bf16>(args.y),
                    .entering = states_of(args.in.initial_state),
                    .leaving = states_of(args.final_state),
                    .first_leaving = static_cast<int>(plan.segments) - 1,
                    .between = chunk_states_of(args.chunk_states),
                    .steps_between = plan.args.steps_per_chunk,
                    .carry = nullptr};
  Carver count;
  SegmentStates(count, plan);
  Scratch scratch(stream, count.used());
  Carver carver = scratch.carver();
  const SegmentStates states(carver, plan);
  if (plan.segments > 1) {
    ForwardArgs part = whole;
    part.entering = part.between = {};
    part.leaving = states.view(1);
    part.first_leaving = 0;
    part.carry = states.carry;
    launch_forward<N, false>(stream, part, plan.rows, plan.segments - 1, plan.slices);
    pass_states(stream, plan, states, whole.entering, false);
    whole.entering = states.view(0);
  }
  launch_forward<N, true>(stream, whole, plan.rows, plan.segments, plan.slices);
}

void form_step_states(Stream& stream, const SsdInput& in, const States& chunk_states,
                      const States& step_states) {
  const ScanPlan plan(in, 1);
  ForwardArgs args{.in = plan.args,
                   .y = {},
                   .entering = chunk_states,
                   .leaving = {},
                   .first_leaving = 0,
                   .between = step_states,
                   .steps_between = 1,
                   .carry = nullptr};
  args.in.steps_per_segment = plan.args.steps_per_chunk;
  const int64_t chunks = ssd_num_chunks(plan.args.tokens, plan.args.chunk);
  if (in.b.size(3) == 64)
    launch_forward<64, false>(stream, args, plan.rows, chunks, plan.slices);
  else
    launch_forward<128, false>(stream, args, plan.rows, chunks, plan.slices);
}

}  // namespace ssd

void run(Stream& stream, const SsdForward& args) {
  const SsdInput& in = args.in;
  ssd::check_input(in);
  const int64_t rows = in.x.size(0), tokens = in.x.size(1), heads = in.x.size(2), p = in.x.size(3),
                n = in.b.size(3);
  ssd::check_state(in.initial_state, "SsdInput.initial_state", {rows, heads, p, n}, false);
  ssd::check_state(args.final_state, "SsdForward.final_state", {rows, heads, p, n}, false);
  ssd::check_state(args.chunk_states, "SsdForward.chunk_states",
                   {rows, ssd_num_chunks(tokens, in.chunk), heads, p, n}, true);
  ssd::check_rows(args.y, "SsdForward.y", in.x.shape());
  if (tokens == 1 && !args.chunk_states)
    ssd::step_forward(stream, args);
  else if (n == 64)
    ssd::forward<64>(stream, args);
  else
    ssd::forward<128>(stream, args);
}

}  // namespace transxssm::cuda
