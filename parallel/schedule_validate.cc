#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <unordered_map>
#include <utility>

#include "parallel/schedule.h"
#include "runtime/error.h"

namespace transxssm {
namespace {

template <class... Args>
[[noreturn]] void invalid(fmt::format_string<Args...> format, Args&&... args) {
  throw UsageError("The schedule is not valid: {}.", fmt::format(format, std::forward<Args>(args)...));
}

bool is_compute(ActionKind kind) {
  return kind <= ActionKind::backward;
}
bool is_backward(ActionKind kind) {
  return kind == ActionKind::backward_input || kind == ActionKind::backward;
}
bool is_weight(ActionKind kind) {
  return kind == ActionKind::backward_weight || kind == ActionKind::backward;
}
bool is_send(ActionKind kind) {
  return kind == ActionKind::send_forward || kind == ActionKind::send_backward;
}
bool is_receive(ActionKind kind) {
  return kind == ActionKind::receive_forward || kind == ActionKind::receive_backward;
}

constexpr int kNumKinds = 9;
constexpr int64_t kMaxCells = 10'000'000;  // a schedule's text may name any numbers: bounds the memory used
constexpr size_t kFewCells = 10'000;

class Validator {
 public:
  Validator(const Schedule& schedule, const ScheduleCosts& costs, const ScheduleLimits& limits)
      : schedule_(schedule), costs_(costs), limits_(limits), m_(schedule.num_microbatches) {}

  ScheduleReport run() {
    check_shape();
    check_enough_actions();
    index_actions();
    check_complete();
    check_order();
    if (lowered_) check_edges();
    count_slots();
    simulate();
    return report_;
  }

 private:
  struct Place {
    int rank = -1;
    int position = -1;
  };

  const ActionList& list(int rank) const { return schedule_.ranks[static_cast<size_t>(rank)]; }
  int rank_of(int stage) const { return schedule_.stage_ranks[static_cast<size_t>(stage)]; }
  size_t index(const Action& a) const {
    return (static_cast<size_t>(a.stage) * kNumKinds + static_cast<size_t>(a.kind)) *
               static_cast<size_t>(m_) +
           static_cast<size_t>(a.microbatch);
  }
  const Place& place(const Action& action) const { return places_[index(action)]; }
  bool has(const Action& action) const { return place(action).rank >= 0; }
  // The action that computes the gradient of the stage's input (or weights), whichever form the schedule
  // uses.
  Action backward_of(int stage, int k, ActionKind half) const {
    const Action whole{stage, ActionKind::backward, k};
    return has(whole) ? whole : Action{stage, half, k};
  }
  Action input_gradient(int stage, int k) const { return backward_of(stage, k, ActionKind::backward_input); }
  Action weight_gradient(int stage, int k) const {
    return backward_of(stage, k, ActionKind::backward_weight);
  }

  void check_shape() {
    if (m_ < 1 || schedule_.num_stages() < 1 || schedule_.num_ranks() < 1) {
      invalid("it has {} microbatches, {} stages and {} ranks", m_, schedule_.num_stages(),
              schedule_.num_ranks());
    }
    if (static_cast<int64_t>(m_) * schedule_.num_stages() > kMaxCells) {
      invalid("{} microbatches x {} stages are more than {}", m_, schedule_.num_stages(), kMaxCells);
    }
    for (int stage = 0; stage < schedule_.num_stages(); ++stage) {
      if (rank_of(stage) < 0 || rank_of(stage) >= schedule_.num_ranks()) {
        invalid("stage {} is on rank {} of {}", stage, rank_of(stage), schedule_.num_ranks());
      }
    }
    const auto needs_all_stages = [&](size_t given, const char* what) {
      if (given != 0 && given != schedule_.stage_ranks.size()) {
        invalid("{} of {} stages given for {}", what, given, schedule_.num_stages());
      }
    };
    needs_all_stages(costs_.stages.size(), "costs");
    needs_all_stages(limits_.stages.size(), "bytes");
  }

  // A text of a few words may name millions of cells: memory is taken for a schedule that can be complete.
  void check_enough_actions() const {
    size_t count = 0;
    for (const ActionList& actions : schedule_.ranks) count += actions.size();
    const auto cells = static_cast<size_t>(m_) * schedule_.stage_ranks.size();
    if (cells > kFewCells && count < cells) {
      invalid("it has {} actions for {} microbatches x {} stages", count, m_, schedule_.num_stages());
    }
  }

  void index_actions() {
    places_.resize(schedule_.stage_ranks.size() * kNumKinds * static_cast<size_t>(m_));
    for (int r = 0; r < schedule_.num_ranks(); ++r) {
      for (size_t i = 0; i < list(r).size(); ++i) {
        const Action& action = list(r)[i];
        if (action.stage < 0 || action.stage >= schedule_.num_stages() || action.microbatch < 0 ||
            action.microbatch >= m_) {
          invalid("rank {} has {}, but there are {} stages and {} microbatches", r, to_string(action),
                  schedule_.num_stages(), m_);
        }
        if (rank_of(action.stage) != r) {
          invalid("{} is on rank {}, but its stage is on rank {}", to_string(action), r,
                  rank_of(action.stage));
        }
        if (schedule_.forward_only && (is_backward(action.kind) || is_weight(action.kind))) {
          invalid("it is forward only, but rank {} has {}", r, to_string(action));
        }
        Place& at = places_[index(action)];
        if (at.rank >= 0) invalid("{} occurs twice on rank {}", to_string(action), r);
        at = {r, static_cast<int>(i)};
        lowered_ = lowered_ || !is_compute(action.kind);
      }
    }
  }

  void check_complete() {
    for (int s = 0; s < schedule_.num_stages(); ++s) {
      for (int k = 0; k < m_; ++k) {
        const Action whole{s, ActionKind::backward, k};
        const auto require = [&](const Action& action) {
          if (!has(action)) invalid("{} is missing on rank {}", to_string(action), rank_of(s));
        };
        require({s, ActionKind::forward, k});
        if (schedule_.forward_only) continue;
        for (const ActionKind half : {ActionKind::backward_input, ActionKind::backward_weight}) {
          if (!has(whole)) require({s, half, k});
          if (has(whole) && has({s, half, k})) {
            invalid("both {} and {} are on rank {}", to_string(whole), to_string({s, half, k}), rank_of(s));
          }
        }
      }
      if (lowered_ && !schedule_.forward_only && !has({s, ActionKind::reduce_gradients, 0})) {
        invalid("{} is missing on rank {}", to_string({s, ActionKind::reduce_gradients, 0}), rank_of(s));
      }
    }
  }

  void before(const Action& first, const Action& second) const {
    if (place(first).position < place(second).position) return;
    if (first == second) return;  // BW
    invalid("{} comes after {} on rank {}", to_string(first), to_string(second), place(first).rank);
  }

  void check_order() const {
    for (int s = 0; s < schedule_.num_stages() && !schedule_.forward_only; ++s) {
      for (int k = 0; k < m_; ++k) {
        before({s, ActionKind::forward, k}, input_gradient(s, k));
        before(input_gradient(s, k), weight_gradient(s, k));
        if (k > 0) before(weight_gradient(s, k - 1), weight_gradient(s, k));
        if (lowered_) before(weight_gradient(s, k), {s, ActionKind::reduce_gradients, 0});
      }
    }
  }

  // The receive that a send's message meets.
  static Action receive_of(const Action& send) {
    return send.kind == ActionKind::send_forward
               ? Action{send.stage + 1, ActionKind::receive_forward, send.microbatch}
               : Action{send.stage - 1, ActionKind::receive_backward, send.microbatch};
  }

  void check_edges() {
    std::map<std::pair<int, int>, std::pair<ActionList, ActionList>> edges;  // by (source, destination)
    for (int r = 0; r < schedule_.num_ranks(); ++r) {
      for (const Action& action : list(r)) {
        const bool forward =
            action.kind == ActionKind::send_forward || action.kind == ActionKind::receive_forward;
        if (!is_send(action.kind) && !is_receive(action.kind)) continue;
        const int other = action.stage + (forward == is_send(action.kind) ? 1 : -1);
        if (other < 0 || other >= schedule_.num_stages() || rank_of(other) == r) {
          invalid("rank {} has {}, but there is no other rank to exchange it with", r, to_string(action));
        }
        const Action compute = forward ? Action{action.stage, ActionKind::forward, action.microbatch}
                                       : input_gradient(action.stage, action.microbatch);
        is_send(action.kind) ? before(compute, action) : before(action, compute);
        if (is_send(action.kind)) {
          edges[{r, rank_of(other)}].first.push_back(action);
        } else {
          edges[{rank_of(other), r}].second.push_back(action);
        }
      }
    }
    for (const auto& [ends, messages] : edges) {
      const auto& [sends, receives] = messages;
      for (size_t i = 0; i < std::max(sends.size(), receives.size()); ++i) {
        if (i >= receives.size()) invalid("{} of rank {} is never received", to_string(sends[i]), ends.first);
        if (i >= sends.size()) invalid("{} of rank {} is never sent", to_string(receives[i]), ends.second);
        if (receive_of(sends[i]) != receives[i]) {
          invalid("message {} from rank {} to rank {} is {}, but is received by {}", i, ends.first,
                  ends.second, to_string(sends[i]), to_string(receives[i]));
        }
        if (const auto ahead = static_cast<size_t>(limits_.send_buffers); ahead > 0 && i >= ahead) {
          const Action compute = sends[i].kind == ActionKind::send_forward
                                     ? Action{sends[i].stage, ActionKind::forward, sends[i].microbatch}
                                     : input_gradient(sends[i].stage, sends[i].microbatch);
          needs_buffer_[index(compute)] = receives[i - ahead];
        }
      }
    }
  }

  void count_slots() {
    report_.max_slots.assign(schedule_.ranks.size(), 0);
    report_.peak_bytes.assign(schedule_.ranks.size(), 0);
    for (int r = 0; r < schedule_.num_ranks(); ++r) {
      int slots = 0;
      int64_t bytes = 0;
      std::map<std::pair<int, int>, int64_t> boundaries;  // held by (stage, microbatch)
      for (const Action& action : list(r)) {
        const StageBytes size =
            limits_.stages.empty() ? StageBytes{} : limits_.stages[static_cast<size_t>(action.stage)];
        const auto peak = [&] {
          report_.max_slots[static_cast<size_t>(r)] =
              std::max(report_.max_slots[static_cast<size_t>(r)], slots);
          int64_t& most = report_.peak_bytes[static_cast<size_t>(r)];
          most = std::max(most, bytes);
          if (limits_.rank_bytes > 0 && most > limits_.rank_bytes) {
            invalid("at {} rank {} holds {} bytes of a budget of {}", to_string(action), r, most,
                    limits_.rank_bytes);
          }
        };
        if (is_receive(action.kind)) {
          bytes += size.boundary;
          boundaries[{action.stage, action.microbatch}] += size.boundary;
        }
        if (action.kind == ActionKind::forward) ++slots, bytes += size.activation;
        peak();
        if (is_backward(action.kind)) bytes += size.weight_gradient - size.activation;
        peak();
        const bool evaluated = schedule_.forward_only && action.kind == ActionKind::forward;
        if (is_weight(action.kind) || evaluated) {
          --slots;
          bytes -= evaluated ? size.activation : size.weight_gradient;
          bytes -= std::exchange(boundaries[{action.stage, action.microbatch}], 0);
        }
      }
    }
  }

  // What must have ended before `action` may start, in `deps`: at most one on another rank's data, one on a
  // buffer.
  int dependencies(const Action& action, Action* deps) const {
    int count = 0;
    const int s = action.stage;
    const int k = action.microbatch;
    if (action.kind == ActionKind::forward && s > 0) {
      const bool message = lowered_ && rank_of(s - 1) != rank_of(s);
      deps[count++] = {s - 1, message ? ActionKind::send_forward : ActionKind::forward, k};
    } else if (is_backward(action.kind) && s + 1 < schedule_.num_stages()) {
      const bool message = lowered_ && rank_of(s + 1) != rank_of(s);
      deps[count++] = message ? Action{s + 1, ActionKind::send_backward, k} : input_gradient(s + 1, k);
    }
    if (count == 1 && is_send(deps[0].kind)) {
      const Action receive = receive_of(deps[0]);
      if (!has(receive)) invalid("{} has no {} before it", to_string(action), to_string(receive));
    }
    if (const auto at = needs_buffer_.find(index(action)); at != needs_buffer_.end())
      deps[count++] = at->second;
    return count;
  }

  double cost(const Action& action) const {
    const StageCost c =
        costs_.stages.empty() ? StageCost{} : costs_.stages[static_cast<size_t>(action.stage)];
    switch (action.kind) {
      case ActionKind::forward:
        return c.forward;
      case ActionKind::backward_input:
        return c.backward_input;
      case ActionKind::backward_weight:
        return c.backward_weight;
      case ActionKind::backward:
        return c.backward_input + c.backward_weight;
      default:
        return 0;
    }
  }

  void simulate() {
    const size_t n = schedule_.ranks.size();
    std::vector<size_t> next(n, 0);
    std::vector<double> clock(n, 0);
    std::vector<double> ended(places_.size(), -1);
    double work = 0;
    // Each rank goes on until it waits, and comes again once what it waits for has ended.
    std::vector<size_t> runnable(n);
    std::iota(runnable.rbegin(), runnable.rend(), size_t{0});
    std::unordered_multimap<size_t, size_t> waiting;  // index of an action -> rank
    while (!runnable.empty()) {
      const size_t r = runnable.back();
      runnable.pop_back();
      for (; next[r] < schedule_.ranks[r].size(); ++next[r]) {
        const Action& action = schedule_.ranks[r][next[r]];
        Action deps[2];
        const int count = dependencies(action, deps);
        double start = clock[r];
        bool ready = true;
        for (int i = 0; i < count && ready; ++i) {
          const double end = ended[index(deps[i])];
          ready = end >= 0;
          if (!ready) waiting.emplace(index(deps[i]), r);
          const bool travels = rank_of(deps[i].stage) != rank_of(action.stage) && !is_receive(deps[i].kind);
          start = std::max(start, end + (travels ? costs_.hop : 0));
        }
        if (!ready) break;
        clock[r] = start + cost(action);
        work += cost(action);
        ended[index(action)] = clock[r];
        const auto [first, last] = waiting.equal_range(index(action));
        for (auto at = first; at != last; ++at) runnable.push_back(at->second);
        waiting.erase(first, last);
      }
    }
    for (size_t r = 0; r < n; ++r) {
      if (next[r] < schedule_.ranks[r].size()) report_deadlock(next, ended, static_cast<int>(r));
    }
    report_.makespan = *std::max_element(clock.begin(), clock.end());
    report_.bubble = report_.makespan > 0 ? 1 - work / (static_cast<double>(n) * report_.makespan) : 0;
  }

  // Follows who waits for whom from a rank that is stuck until a rank comes again.
  [[noreturn]] void report_deadlock(const std::vector<size_t>& next, const std::vector<double>& ended,
                                    int rank) const {
    std::vector<std::pair<int, std::string>> path;
    for (std::set<int> seen; seen.insert(rank).second;) {
      const Action& action = list(rank)[next[static_cast<size_t>(rank)]];
      Action deps[2];
      const int count = dependencies(action, deps);
      const Action& missing = count == 2 && ended[index(deps[0])] >= 0 ? deps[1] : deps[0];
      path.emplace_back(rank, fmt::format("rank {} at {} waits for {} of rank {}", rank, to_string(action),
                                          to_string(missing), rank_of(missing.stage)));
      rank = rank_of(missing.stage);
      if (!has(missing)) break;
    }
    constexpr int kShown = 16;
    std::string cycle;
    int length = 0;
    for (const auto& [at, step] : path) {
      if (length == 0 && at != rank) continue;
      if (++length <= kShown) cycle += fmt::format("{}{}", cycle.empty() ? "" : "; ", step);
    }
    if (length > kShown) cycle += fmt::format("; and {} more", length - kShown);
    invalid("it deadlocks: {}", cycle.empty() ? path.back().second : cycle);
  }

  const Schedule& schedule_;
  const ScheduleCosts& costs_;
  const ScheduleLimits& limits_;
  const int m_;
  bool lowered_ = false;
  std::vector<Place> places_;              // by index()
  std::map<size_t, Action> needs_buffer_;  // index of a computation -> receive that frees its send buffer
  ScheduleReport report_;
};

}  // namespace

ScheduleReport validate(const Schedule& schedule, const ScheduleCosts& costs, const ScheduleLimits& limits) {
  return Validator(schedule, costs, limits).run();
}

}  // namespace transxssm
