// Scans in segments: how many, and the state passed from one to the next.
#include "kernels/cpu/rows.h"
#include "kernels/cuda/ssd_launch.h"
#include "runtime/cuda/device.h"

namespace transxssm::cuda::ssd {

namespace {

constexpr int kPassThreads = 256, kPassParts = 4;

struct PassArgs {
  ScanArgs in;
  float* states;       // [B, segments, slices, 64, N]
  const float* carry;  // [B, segments, slices]
  States border;       // the first or last of them
  int state_dim;
  bool backwards;
};

}  // namespace

// Block (slice, row, part of the state). A thread takes columns j and j + N/2 of some rows through all
// segments.
__global__ void __launch_bounds__(kPassThreads) ssd_pass_kernel(PassArgs args) {
  const ScanArgs& in = args.in;
  const int half = args.state_dim / 2, slice = static_cast<int>(blockIdx.x),
            row = static_cast<int>(blockIdx.y);
  const int64_t size = int64_t{kWidth} * args.state_dim;
  const int64_t border = args.border.offset(row, 0, slice / in.tiles) + slice % in.tiles * size;
  const auto at = [&](int segment) {
    return args.states + ((int64_t{row} * in.segments + segment) * gridDim.x + slice) * size;
  };
  const int first = static_cast<int>(blockIdx.z * blockDim.x + threadIdx.x);
  const int threads = static_cast<int>(gridDim.z * blockDim.x);
  for (int i = first; i < kWidth * half; i += threads) {
    const int64_t low = int64_t{i / half} * args.state_dim + i % half, high = low + half;
    int segment = args.backwards ? in.segments - 1 : 0;
    float x = 0.0f, y = 0.0f;
    if (args.border.data != nullptr) {
      const float* from = static_cast<const float*>(args.border.data) + border;
      x = from[low], y = from[high];
    }
    at(segment)[low] = x, at(segment)[high] = y;
    for (int passed = 1; passed < in.segments; ++passed) {
      float cos = 1.0f, sin = 0.0f;  // of the segment's length
      for (int s = 0; s < in.steps_per_segment && in.cos != nullptr; ++s) {
        const int step_index = segment * in.steps_per_segment + s;
        if (step_index >= in.steps) break;
        const int64_t entry = int64_t{Step(in, step_index).length} * half + i % half;
        rotate_pair(cos, sin, in.cos[entry], in.sin[entry]);
      }
      rotate_pair(x, y, cos, args.backwards ? sin : -sin);
      const float carry = args.carry[(int64_t{row} * in.segments + segment) * gridDim.x + slice];
      segment += args.backwards ? -1 : 1;
      float* to = at(segment);
      x = carry * x + to[low], y = carry * y + to[high];
      to[low] = x, to[high] = y;
    }
  }
}

void pass_states(Stream& stream, const ScanPlan& plan, const SegmentStates& to, const States& border,
                 bool backwards) {
  const PassArgs args{.in = plan.args,
                      .states = to.states,
                      .carry = to.carry,
                      .border = border,
                      .state_dim = static_cast<int>(plan.state_dim),
                      .backwards = backwards};
  const LaunchShape shape{.grid = grid_of(plan.slices, plan.rows, kPassParts), .block = dim3(kPassThreads)};
  TRANSXSSM_LAUNCH(ssd_pass_kernel, shape, queue_of(stream), args);
}

dim3 grid_of(int64_t x, int64_t y, int64_t z) {
  TRANSXSSM_CHECK(x < (int64_t{1} << 31) && y < 65536 && z < 65536, "a grid of {} x {} x {} blocks", x, y, z);
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
}

SegmentStates::SegmentStates(Carver& carver, const ScanPlan& scan) : plan(&scan) {
  if (scan.segments == 1) return;
  const int64_t size = kWidth * scan.state_dim;
  states = carver.take(DType::f32, {scan.rows, scan.segments, scan.slices, size}).data<float>();
  carry = carver.take(DType::f32, {scan.rows, scan.segments, scan.slices}).data<float>();
}

States SegmentStates::view(int64_t offset) const {
  const int64_t head = plan->args.tiles * kWidth * plan->state_dim,
                place = plan->slices * kWidth * plan->state_dim;
  return {states + offset * place, false, plan->segments * place, place, head};
}

States states_of(const Tensor& state) {
  if (!state) return {};
  return {state.raw(), state.dtype() == DType::bf16, state.stride(0), 0, state.stride(1)};
}

States chunk_states_of(const Tensor& states) {
  if (!states) return {};
  return {states.raw(), states.dtype() == DType::bf16, states.stride(0), states.stride(1), states.stride(2)};
}

ScanPlan::ScanPlan(const SsdInput& in, int64_t max_segments)
    : rows(in.x.size(0)), slices(in.x.size(2) * in.x.size(3) / kWidth), state_dim(in.b.size(3)) {
  const int64_t tokens = in.x.size(1), steps_per_chunk = (in.chunk + kTokens - 1) / kTokens;
  const int64_t steps = tokens / in.chunk * steps_per_chunk + (tokens % in.chunk + kTokens - 1) / kTokens;
  const int64_t steps_per_segment = (steps + max_segments - 1) / max_segments;
  segments = (steps + steps_per_segment - 1) / steps_per_segment;
  const auto narrow = [](int64_t value) { return static_cast<int>(value); };
  args = {.x = heads_of<const bf16>(in.x),
          .b = heads_of<const bf16>(in.b),
          .c = heads_of<const bf16>(in.c),
          .u = heads_of<const float>(in.u),
          .dt_bias = in.dt_bias.data<float>(),
          .a_log = in.a_log.data<float>(),
          .d_skip = in.d_skip.data<float>(),
          .cos = in.cos.data<float>(),
          .sin = in.sin.data<float>(),
          .c_scale = in.c_scale.data<float>(),
          .c_scale_row = in.c_scale ? in.c_scale.stride(0) : 0,
          .c_scale_token = in.c_scale ? in.c_scale.stride(1) : 0,
          .start = in.start.data<uint8_t>(),
          .start_row = in.start ? in.start.stride(0) : 0,
          .start_token = in.start ? in.start.stride(1) : 0,
          .tokens = narrow(tokens),
          .chunk = narrow(in.chunk),
          .heads = narrow(in.x.size(2)),
          .tiles = narrow(in.x.size(3) / kWidth),
          .heads_per_group = narrow(in.x.size(2) / in.b.size(2)),
          .steps_per_chunk = narrow(steps_per_chunk),
          .steps = narrow(steps),
          .segments = narrow(segments),
          .steps_per_segment = narrow(steps_per_segment)};
}

int64_t segments_for(const SsdInput& in, int blocks_per_multiprocessor) {
  int device = 0, multiprocessors = 0;
  TRANSXSSM_CUDA_CHECK(cudaGetDevice(&device));
  TRANSXSSM_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  const int64_t blocks = in.x.size(0) * in.x.size(2) * in.x.size(3) / kWidth;
  const int64_t at_once = int64_t{multiprocessors} * blocks_per_multiprocessor;
  const int64_t whole_steps = in.x.size(1) / kTokens;
  return std::max<int64_t>(1, std::min(at_once / blocks, whole_steps / 2));
}

void check_rows(const Tensor& tensor, const char* name, const Shape& shape) {
  cpu::expect(tensor, name, DType::bf16, shape);
  bool aligned = reinterpret_cast<uintptr_t>(tensor.raw()) % 16 == 0;
  for (int dim = 0; dim + 1 < shape.rank(); ++dim)
    aligned = aligned && (shape[dim] == 1 || tensor.stride(dim) % 8 == 0);
  TRANSXSSM_CHECK(aligned, "{}: its rows do not begin at multiples of 16 bytes", name);
}

void check_state(const Tensor& state, const char* name, const Shape& shape, bool may_be_bf16) {
  if (!state) return;
  cpu::expect(state, name, may_be_bf16 && state.dtype() == DType::bf16 ? DType::bf16 : DType::f32, shape);
  const int rank = shape.rank();
  TRANSXSSM_CHECK(state.stride(rank - 2) == shape[rank - 1], "{}: [P,N] is not contiguous", name);
  TRANSXSSM_CHECK(reinterpret_cast<uintptr_t>(state.raw()) % 16 == 0, "{} is not aligned to 16 bytes", name);
}

void check_input(const SsdInput& in) {
  TRANSXSSM_CHECK(in.x.rank() == 4 && in.b.rank() == 4, "SsdInput.x and b must be of rank 4");
  const int64_t rows = in.x.size(0), tokens = in.x.size(1), heads = in.x.size(2), p = in.x.size(3);
  const int64_t groups = in.b.size(2), n = in.b.size(3);
  if (p % kWidth != 0 || (n != 64 && n != 128))
    throw UsageError(
        "the state-space scan on GPUs takes a head dim that is a multiple of {} and a state dim of 64 or "
        "128, "
        "not {} and {}: change head_dim and state_dim, or run on the device cpu",
        kWidth, p, n);
  TRANSXSSM_CHECK(rows > 0 && tokens > 0 && tokens < (int64_t{1} << 31),
                  "SsdInput.x has {} rows of {} tokens", rows, tokens);
  TRANSXSSM_CHECK(in.chunk > 0 && in.chunk < (int64_t{1} << 31) - kTokens, "SsdInput.chunk is {}", in.chunk);
  TRANSXSSM_CHECK(groups > 0 && heads % groups == 0, "{} groups do not divide {} heads", groups, heads);
  check_rows(in.x, "SsdInput.x", {rows, tokens, heads, p});
  check_rows(in.b, "SsdInput.b", {rows, tokens, groups, n});
  check_rows(in.c, "SsdInput.c", {rows, tokens, groups, n});
  TRANSXSSM_CHECK(in.u.dtype() == DType::f32 && in.u.shape() == (Shape{rows, tokens, heads}),
                  "SsdInput.u is {} {}", dtype_name(in.u.dtype()), in.u.shape().to_string());
  cpu::expect(in.dt_bias, "SsdInput.dt_bias", DType::f32, {heads});
  cpu::expect(in.a_log, "SsdInput.a_log", DType::f32, {heads});
  cpu::expect_or_empty(in.d_skip, "SsdInput.d_skip", DType::f32, {heads});
  TRANSXSSM_CHECK(in.cos.empty() == in.sin.empty(), "SsdInput.cos and sin come together");
  for (const Tensor* table : {&in.cos, &in.sin}) {
    if (!*table) continue;
    const int64_t longest = std::min({in.chunk, tokens, int64_t{kTokens}});
    TRANSXSSM_CHECK(table->size(0) > longest, "SsdInput.cos or sin has {} rows, needs {}", table->size(0),
                    longest + 1);
    cpu::expect(*table, "SsdInput.cos or sin", DType::f32, {table->size(0), n / 2});
    TRANSXSSM_CHECK(table->is_contiguous() && reinterpret_cast<uintptr_t>(table->raw()) % 16 == 0,
                    "SsdInput.cos or sin is not contiguous from a multiple of 16 bytes");
  }
  cpu::expect_or_empty(in.start, "SsdInput.start", DType::u8, {rows, tokens});
  cpu::expect_or_empty(in.c_scale, "SsdInput.c_scale", DType::f32, {rows, tokens});
}

}  // namespace transxssm::cuda::ssd
