// A pipeline schedule is data: for every rank a list of actions that can be generated, printed, parsed,
// lowered to messages and validated by simulating all ranks. parallel/pipeline.h runs it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace transxssm {

enum class ActionKind : uint8_t {
  forward,           // F
  backward_input,    // B: gradient of the stage's input
  backward_weight,   // W: gradients of the stage's parameters, which accumulate
  backward,          // BW: both
  send_forward,      // SF: the stage's output to the next stage
  receive_forward,   // RF: posts the receive of the stage's input
  send_backward,     // SB: the gradient of the stage's input to the previous stage
  receive_backward,  // RB: posts the receive of the gradient of the stage's output
  reduce_gradients,  // RG: the stage's gradients over data parallel ranks; no microbatch
};

struct Action {
  int stage = 0;  // virtual stage, 0 holds the embedding
  ActionKind kind = ActionKind::forward;
  int microbatch = 0;
  bool operator==(const Action&) const = default;
};

using ActionList = std::vector<Action>;

struct Schedule {
  int num_microbatches = 0;
  std::vector<int> stage_ranks;   // rank of each virtual stage
  std::vector<ActionList> ranks;  // what each rank does, in order
  bool forward_only = false;      // evaluation: F actions only
  int num_ranks() const { return static_cast<int>(ranks.size()); }
  int num_stages() const { return static_cast<int>(stage_ranks.size()); }
  bool operator==(const Schedule&) const = default;
};

// Generators for p stages, one a rank, and m microbatches; p, m >= 1.
// All forwards, then all backwards (Huang et al., arXiv 1811.06965): m slots.
Schedule gpipe_schedule(int p, int m);
// One forward, one backward after a warm-up of p - 1 - stage forwards (Narayanan et al., arXiv 2104.04473):
// at most p - stage slots.
Schedule one_f_one_b_schedule(int p, int m);
// Evaluation.
Schedule forward_only_schedule(int p, int m);

// "0F3", "1BW2", "0RG".
std::string to_string(const Action& action);
// Two header lines, then one line a rank; parse_schedule reads it back, and throws UsageError naming line and
// word.
std::string to_string(const Schedule& schedule);
Schedule parse_schedule(std::string_view text);

// Adds sends, receives and RG to a schedule of F, B, W, BW. On each directed edge between two ranks the
// receives are posted in the sender's order, `prefetch` compute actions before the one that needs them. BW
// becomes B SB W where there is a gradient to send, so that the previous stage need not wait for W.
Schedule lower(const Schedule& schedule, int prefetch = 1);

// Costs by virtual stage, in any unit of time; an empty vector means 1 for each of F, B and W.
struct StageCost {
  double forward = 1;
  double backward_input = 1;
  double backward_weight = 1;
};
struct ScheduleCosts {
  std::vector<StageCost> stages;
  double hop = 0;  // from one rank to another
};

// Bytes by virtual stage: a microbatch holds `activation` from F to B, `weight_gradient` from B to W, and
// `boundary` for each receive from its posting to W. Empty: not counted.
struct StageBytes {
  int64_t activation = 0;
  int64_t weight_gradient = 0;
  int64_t boundary = 0;
};

struct ScheduleLimits {
  std::vector<StageBytes> stages;
  int64_t rank_bytes = 0;  // budget of each rank; 0: none
  // Sends a directed edge may have in flight, each complete once its receive is posted, in lowered schedules;
  // 0: any number, buffered.
  int send_buffers = 0;
};

struct ScheduleReport {
  std::vector<int> max_slots;       // of each rank: microbatches of any stage between F and W
  std::vector<int64_t> peak_bytes;  // of each rank, by ScheduleLimits
  double makespan = 0;              // until the last rank is done: all wait for the optimizer
  double bubble = 0;                // fraction of ranks x makespan in which a rank does not compute
};

// Simulates all ranks. Throws UsageError naming rank and action unless: each F and (BW or B and W) occurs
// once, on its stage's rank; F before B before W; the W's of a stage ascend in microbatch (gradients then
// have the same bits under every schedule); all ranks come to their end (else the message is the cycle of
// waits); messages of an edge are received in the order sent; RG follows all W's of its stage; the byte
// budget holds; nothing is left over.
ScheduleReport validate(const Schedule& schedule, const ScheduleCosts& costs = {},
                        const ScheduleLimits& limits = {});

// Cuts a chain of units (sub-layers) into p contiguous, non-empty stages of least maximal cost, and among
// those of least sum of squares. Returns p + 1 unit indices: stage i is [result[i], result[i + 1]).
// UsageError where there are fewer units than stages.
std::vector<int> cut_stages(std::span<const double> costs, int p);

}  // namespace transxssm
