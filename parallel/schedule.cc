#include "parallel/schedule.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <sstream>
#include <utility>

#include "runtime/error.h"
#include "runtime/printable.h"

namespace transxssm {
namespace {

constexpr std::array<std::pair<ActionKind, std::string_view>, 9> kKindNames{{
    {ActionKind::forward, "F"},
    {ActionKind::backward_input, "B"},
    {ActionKind::backward_weight, "W"},
    {ActionKind::backward, "BW"},
    {ActionKind::send_forward, "SF"},
    {ActionKind::receive_forward, "RF"},
    {ActionKind::send_backward, "SB"},
    {ActionKind::receive_backward, "RB"},
    {ActionKind::reduce_gradients, "RG"},
}};

constexpr int kMaxNumber = 1'000'000;  // of a microbatch, stage or rank in a schedule's text

Schedule one_stage_a_rank(int p, int m) {
  TRANSXSSM_CHECK(p >= 1 && m >= 1, "{} stages, {} microbatches", p, m);
  Schedule schedule;
  schedule.num_microbatches = m;
  for (int r = 0; r < p; ++r) schedule.stage_ranks.push_back(r);
  schedule.ranks.resize(static_cast<size_t>(p));
  return schedule;
}

[[noreturn]] void parse_failed(int line, std::string_view word, std::string_view expected) {
  throw UsageError("Schedule, line {}: '{}' is not {}.", line, printable(word, 60), expected);
}

int parse_number(int line, std::string_view word, std::string_view digits) {
  int number = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (error != std::errc{} || end != digits.data() + digits.size() || number < 0 || number > kMaxNumber) {
    parse_failed(line, word, "a number up to 1000000 where one belongs");
  }
  return number;
}

Action parse_action(int line, std::string_view word) {
  const size_t letters = word.find_first_not_of("0123456789");
  if (letters == std::string_view::npos) parse_failed(line, word, "an action such as 0F3");
  const size_t tail = std::min(word.find_first_of("0123456789", letters), word.size());
  const std::string_view name = word.substr(letters, tail - letters);
  for (const auto& [kind, kind_name] : kKindNames) {
    if (name != kind_name) continue;
    Action action{parse_number(line, word, word.substr(0, letters)), kind, 0};
    if (kind != ActionKind::reduce_gradients) {
      action.microbatch = parse_number(line, word, word.substr(tail));
    } else if (tail != word.size()) {
      break;
    }
    return action;
  }
  parse_failed(line, word,
               "an action: stage, then F, B, W, BW, SF, RF, SB, RB with a microbatch or RG without");
}

}  // namespace

Schedule gpipe_schedule(int p, int m) {
  Schedule schedule = one_stage_a_rank(p, m);
  for (int r = 0; r < p; ++r) {
    ActionList& list = schedule.ranks[static_cast<size_t>(r)];
    for (int k = 0; k < m; ++k) list.push_back({r, ActionKind::forward, k});
    for (int k = 0; k < m; ++k) list.push_back({r, ActionKind::backward, k});
  }
  return schedule;
}

Schedule one_f_one_b_schedule(int p, int m) {
  Schedule schedule = one_stage_a_rank(p, m);
  for (int r = 0; r < p; ++r) {
    ActionList& list = schedule.ranks[static_cast<size_t>(r)];
    const int warm_up = std::min(m, p - 1 - r);
    for (int k = 0; k < m; ++k) {
      list.push_back({r, ActionKind::forward, k});
      if (k >= warm_up) list.push_back({r, ActionKind::backward, k - warm_up});
    }
    for (int k = m - warm_up; k < m; ++k) list.push_back({r, ActionKind::backward, k});
  }
  return schedule;
}

Schedule forward_only_schedule(int p, int m) {
  Schedule schedule = one_stage_a_rank(p, m);
  schedule.forward_only = true;
  for (int r = 0; r < p; ++r) {
    for (int k = 0; k < m; ++k) schedule.ranks[static_cast<size_t>(r)].push_back({r, ActionKind::forward, k});
  }
  return schedule;
}

std::string to_string(const Action& action) {
  const std::string_view name = kKindNames[static_cast<size_t>(action.kind)].second;
  if (action.kind == ActionKind::reduce_gradients) return fmt::format("{}{}", action.stage, name);
  return fmt::format("{}{}{}", action.stage, name, action.microbatch);
}

std::string to_string(const Schedule& schedule) {
  std::string text = fmt::format("microbatches {}{}\nstage_ranks", schedule.num_microbatches,
                                 schedule.forward_only ? " forward_only" : "");
  for (int rank : schedule.stage_ranks) text += fmt::format(" {}", rank);
  text += '\n';
  for (int r = 0; r < schedule.num_ranks(); ++r) {
    text += fmt::format("{}:", r);
    for (const Action& action : schedule.ranks[static_cast<size_t>(r)]) text += ' ' + to_string(action);
    text += '\n';
  }
  return text;
}

Schedule parse_schedule(std::string_view text) {
  Schedule schedule;
  std::istringstream lines{std::string(text)};
  std::string line;
  int number = 0;
  for (; std::getline(lines, line); ++number) {
    std::istringstream words(line);
    std::string word;
    if (!(words >> word)) {
      if (number < 2) parse_failed(number + 1, line, "a line of the header");
      continue;
    }
    const auto next = [&] { return static_cast<bool>(words >> word); };
    if (number == 0) {
      if (word != "microbatches") parse_failed(1, word, "the word 'microbatches'");
      if (!next()) parse_failed(1, line, "'microbatches' and their number");
      schedule.num_microbatches = parse_number(1, word, word);
      schedule.forward_only = next();
      if (schedule.forward_only && word != "forward_only") parse_failed(1, word, "the word 'forward_only'");
      if (schedule.forward_only && next()) parse_failed(1, word, "the end of the line");
    } else if (number == 1) {
      if (word != "stage_ranks") parse_failed(2, word, "the word 'stage_ranks'");
      while (next()) schedule.stage_ranks.push_back(parse_number(2, word, word));
    } else {
      if (word != fmt::format("{}:", schedule.num_ranks())) {
        parse_failed(number + 1, word, fmt::format("'{}:', the next rank", schedule.num_ranks()));
      }
      ActionList& list = schedule.ranks.emplace_back();
      while (next()) list.push_back(parse_action(number + 1, word));
    }
  }
  if (number < 2) parse_failed(number + 1, "", "one of the two lines of the header");
  return schedule;
}

}  // namespace transxssm
