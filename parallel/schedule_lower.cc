// Lowering: which messages a schedule of computations implies, and when each side posts them.
#include <algorithm>
#include <map>
#include <utility>

#include "parallel/schedule.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

class Lowering {
 public:
  Lowering(const Schedule& schedule, int prefetch) : schedule_(schedule), prefetch_(prefetch) {
    // Receives of each directed edge in the order in which the sender computes what it sends.
    for (int r = 0; r < schedule.num_ranks(); ++r) {
      for (const Action& action : schedule.ranks[static_cast<size_t>(r)]) {
        Action receive;
        if (sends(action, receive)) edges_[{r, rank_of(receive.stage)}].receives.push_back(receive);
      }
    }
  }

  Schedule run() {
    Schedule lowered = schedule_;
    for (int r = 0; r < schedule_.num_ranks(); ++r) lowered.ranks[static_cast<size_t>(r)] = lower_rank(r);
    return lowered;
  }

 private:
  struct Edge {
    ActionList receives;
    size_t posted = 0;
  };

  int rank_of(int stage) const { return schedule_.stage_ranks[static_cast<size_t>(stage)]; }
  static bool is_backward(ActionKind kind) {
    return kind == ActionKind::backward_input || kind == ActionKind::backward;
  }

  // Whether the result of `action` leaves the rank, and the receive on the other side.
  bool sends(const Action& action, Action& receive) const {
    if (action.kind == ActionKind::forward && action.stage + 1 < schedule_.num_stages()) {
      receive = {action.stage + 1, ActionKind::receive_forward, action.microbatch};
    } else if (is_backward(action.kind) && action.stage > 0) {
      receive = {action.stage - 1, ActionKind::receive_backward, action.microbatch};
    } else {
      return false;
    }
    return rank_of(receive.stage) != rank_of(action.stage);
  }

  // Whether `action` needs a message, from which rank, and its receive.
  bool needs(const Action& action, int& source, Action& receive) const {
    if (action.kind == ActionKind::forward && action.stage > 0) {
      source = rank_of(action.stage - 1);
      receive = {action.stage, ActionKind::receive_forward, action.microbatch};
    } else if (is_backward(action.kind) && action.stage + 1 < schedule_.num_stages()) {
      source = rank_of(action.stage + 1);
      receive = {action.stage, ActionKind::receive_backward, action.microbatch};
    } else {
      return false;
    }
    return source != rank_of(action.stage);
  }

  ActionList lower_rank(int rank) {
    const ActionList& list = schedule_.ranks[static_cast<size_t>(rank)];
    ActionList out;
    std::map<int, int> weights_done;  // by stage
    for (size_t i = 0; i < list.size(); ++i) {
      for (size_t j = i; j < list.size() && j <= i + static_cast<size_t>(prefetch_); ++j)
        post(rank, list[j], out);
      const Action& action = list[i];
      Action receive;
      const bool leaves = sends(action, receive);
      if (action.kind == ActionKind::backward && leaves) {
        out.push_back({action.stage, ActionKind::backward_input, action.microbatch});
        out.push_back({action.stage, ActionKind::send_backward, action.microbatch});
        out.push_back({action.stage, ActionKind::backward_weight, action.microbatch});
      } else {
        out.push_back(action);
        if (leaves) {
          const bool forward = action.kind == ActionKind::forward;
          out.push_back({action.stage, forward ? ActionKind::send_forward : ActionKind::send_backward,
                         action.microbatch});
        }
      }
      if (action.kind == ActionKind::backward || action.kind == ActionKind::backward_weight) {
        if (++weights_done[action.stage] == schedule_.num_microbatches) {
          out.push_back({action.stage, ActionKind::reduce_gradients, 0});
        }
      }
    }
    return out;
  }

  // Posts what `action` needs and all that its sender sends before.
  void post(int rank, const Action& action, ActionList& out) {
    int source = 0;
    Action receive;
    if (!needs(action, source, receive)) return;
    Edge& edge = edges_[{source, rank}];
    const auto begin = edge.receives.begin();
    const auto at = std::find(begin + static_cast<int64_t>(edge.posted), edge.receives.end(), receive);
    if (at == edge.receives.end()) return;  // posted already, or never sent, which validate() reports
    out.insert(out.end(), begin + static_cast<int64_t>(edge.posted), at + 1);
    edge.posted = static_cast<size_t>(at - begin) + 1;
  }

  const Schedule& schedule_;
  const int prefetch_;
  std::map<std::pair<int, int>, Edge> edges_;  // by (source, destination)
};

}  // namespace

Schedule lower(const Schedule& schedule, int prefetch) {
  TRANSXSSM_CHECK(prefetch >= 0, "prefetch {}", prefetch);
  for (const ActionList& list : schedule.ranks) {
    for (const Action& action : list) {
      if (action.kind > ActionKind::backward || action.stage >= schedule.num_stages()) {
        throw UsageError("The schedule cannot be lowered: {} is not F, B, W or BW of one of its {} stages.",
                         to_string(action), schedule.num_stages());
      }
    }
  }
  return Lowering(schedule, prefetch).run();
}

}  // namespace transxssm
